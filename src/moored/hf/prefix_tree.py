# SPDX-License-Identifier: Apache-2.0
"""Lines that begin alike, run as one tree: what they share runs once, and there is no padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moored.hf.hooks import body, forward_takes, in_evaluation, own_model
from moored.hf.reader import predicting

LARGEST = 1024
"""Tokens of a tree: attention looks at all pairs of them."""

WORTH = 0.9
"""A tree runs if it has at most this share of the batch's positions."""

ROUNDING = 1e-3
"""Largest difference of a state, relative to the standard deviation of states; that of fp32 is about 1e-4."""

_TRIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Layout:
    """A batch as the model is given it.

    Args:
        inputs: of the model: the batch itself, or one line that holds its tree.
        places: where in `inputs`, flattened, each position of the batch is; that of padding means nothing.
        mask: which positions of the batch are tokens.
    """

    inputs: dict[str, Tensor]
    places: Int[Tensor, "lines length"]
    mask: Bool[Tensor, "lines length"]

    def spread(self, x: Float[Tensor, "*run width"]) -> Float[Tensor, "lines length width"]:
        """What a module gave or was given, as if the lines had run apart.

        Args:
            x: (lines, length, width) of `inputs`, or the same flattened.
        """
        return x.flatten(0, -2)[self.places]

    def covers(self, x: Tensor) -> bool:
        """Whether a tensor has one vector for every position of `inputs`."""
        shape = self.inputs["input_ids"].shape
        return x.shape[:-1] in (shape, (shape.numel(),))


def laid_out(model: Any, batch: Mapping[str, Int[Tensor, "lines length"]]) -> Layout:
    """The batch on the model's device, as a tree where that is less to run and gives the same.

    The same up to rounding: sums over what a token attends to have the same terms in another order.

    Args:
        model: a causal language model in evaluation mode.
        batch: with `input_ids` and `attention_mask`, padded on the right.
    """
    device = next(model.parameters()).device
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    tree = _Tree(ids, mask)
    small = len(tree.tokens) <= min(LARGEST, WORTH * ids.numel())
    if small and runs_trees(model) and ids.shape[1] <= _reach(model):
        return Layout(tree.inputs(model), tree.places.to(device), mask.to(device))
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    return Layout(inputs, torch.arange(ids.numel(), device=device).view(ids.shape), mask.to(device))


def answer_logits(model: Any, batch: Mapping[str, Int[Tensor, "lines length"]]) -> Float[Tensor, "answers vocabulary"]:
    """The logits for the tokens of the answers, in the order of `answer_targets`; few others are made.

    Args:
        model: a causal language model in evaluation mode.
        batch: padded on the right, with `labels`.
    """
    layout = laid_out(model, batch)
    flat = layout.places[predicting(batch["labels"]).to(layout.places.device)]
    line, column = flat // layout.inputs["input_ids"].shape[1], flat % layout.inputs["input_ids"].shape[1]
    if not forward_takes(model, "logits_to_keep"):
        return model(**layout.inputs, use_cache=False).logits[line, column]
    columns, own = column.unique(return_inverse=True)
    return model(**layout.inputs, use_cache=False, logits_to_keep=columns).logits[line, own]


def runs_trees(model: Any) -> bool:
    """Whether the model's states are the same in a tree as line by line: tried once, not looked up.

    Models that give a line's state from token to token, or that ignore positions or the mask, fail here.

    Args:
        model: a causal language model.
    """
    if model not in _TRIED:
        _TRIED[model] = forward_takes(model, "position_ids") and _same(model)
    return _TRIED[model]


@torch.no_grad()
def _same(model: Any) -> bool:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8, 0]])
    mask = torch.tensor([[True] * 6, [True] * 5 + [False]])
    tree, device = _Tree(ids, mask), next(model.parameters()).device
    with in_evaluation(model):
        apart = body(model)(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False)
        try:
            shared = body(model)(**tree.inputs(model), use_cache=False)
        except (
            RuntimeError,
            ValueError,
            TypeError,
            IndexError,
        ):  # a model that takes no mask of pairs says so in any way
            return False
    wanted, found = apart.last_hidden_state.float(), shared.last_hidden_state.float()
    if found.shape[:2] != (1, len(tree.tokens)):
        return False
    apart_from = (found[0][tree.places.to(device)] - wanted)[mask].abs().max()
    return bool(apart_from <= ROUNDING * wanted[mask].std())


def _reach(model: Any) -> float:
    """How far attention looks back, in tokens; a mask of ours would let it look further."""
    config = own_model(model).config.get_text_config()
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((window for window in windows if window), default=float("inf"))


class _Tree:
    """The distinct beginnings of the lines of a batch, parents before children.

    Args:
        ids: tokens.
        mask: which of them are no padding.
    """

    def __init__(self, ids: Int[Tensor, "lines length"], mask: Bool[Tensor, "lines length"]) -> None:
        known: dict[tuple[int, int], int] = {}
        paths = []
        for line, count in zip(ids.tolist(), mask.sum(dim=1).tolist(), strict=True):
            path, parent = [], -1
            for token in line[:count]:
                parent = known.setdefault((parent, token), len(known))
                path.append(parent)
            paths.append(path)
        self.tokens = [token for _, token in known]
        self.places = torch.zeros_like(ids)
        self._depth = torch.zeros(len(known), dtype=torch.long)
        self._sees = torch.zeros(len(known), len(known), dtype=torch.bool)
        for line, path in enumerate(paths):
            own = torch.tensor(path, dtype=torch.long)
            self.places[line, : len(own)] = own
            self._depth[own] = torch.arange(len(own))
            self._sees[own.unsqueeze(1), own] |= torch.ones(len(own), len(own), dtype=torch.bool).tril()

    def inputs(self, model: Any) -> dict[str, Tensor]:
        """One line; every token sees its own beginning."""
        parameter = next(model.parameters())
        hidden = torch.finfo(parameter.dtype).min
        mask = torch.zeros(self._sees.shape, dtype=parameter.dtype).masked_fill(~self._sees, hidden)
        inputs = {"input_ids": torch.tensor([self.tokens]), "position_ids": self._depth.unsqueeze(0)}
        return {
            name: tensor.to(parameter.device)
            for name, tensor in (inputs | {"attention_mask": mask[None, None]}).items()
        }
