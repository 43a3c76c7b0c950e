# SPDX-License-Identifier: Apache-2.0
"""Prompts that are continued side by side, a token each per step; rows leave, and others join."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from moored.errors import NotYetSupported
from moored.hf.hooks import forward_takes, own_model

_COMPACT_BELOW = 0.8
"""The batch is cut to its live rows when they are at most this share of it: a cut copies the cache."""

Row = TypeVar("Row")

Choose = Callable[[Float[Tensor, "rows vocabulary"], Sequence[Row]], Int[Tensor, " rows"]]
"""The next token of each row, from the logits and the rows. Rows that were dropped a while ago can be among them."""


class Continuation(Generic[Row]):
    """Prompts, and the tokens that follow them.

    Prompts are padded on the left; what all of them begin with (a system turn, an instruction) is read once.

    Args:
        model: a causal language model in evaluation mode, plain or with a PEFT adapter, on any one device.
        prompts: tokens, at least one in each.
        rows: by what the prompts are known, one each, hashable.
        limit: most tokens behind a prompt.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], rows: Sequence[Row], limit: int):
        self._model = model
        self._device = next(model.parameters()).device
        shared = _shared_prefix(model, prompts, limit)
        self._ids, self._mask = _padded(prompts, shared, self._device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
        self._cache = _prefix_cache(model, prompts[0][:shared], len(prompts), self._device)
        self._token: Int[Tensor, " rows"] | None = None
        self._rows = list(rows)
        self._live = dict.fromkeys(rows)

    @property
    def live(self) -> list[Row]:
        """The rows that were not dropped, in the order in which they came."""
        return list(self._live)

    def step(self, choose: Choose[Row]) -> Iterator[tuple[Row, int]]:
        """One more token for each live row: the row, and its token.

        The caller runs it in `torch.inference_mode`, and drops rows that have ended before the next step.

        Args:
            choose: called once.

        Raises:
            NotYetSupported: the model has no key-value cache.
        """
        if self._token is not None:
            self._advance(self._token)
        logits, self._cache = _forward(self._model, self._ids, self._mask, self._positions, self._cache)
        self._token = choose(logits, self._rows)
        for row, new in zip(list(self._rows), self._token.tolist(), strict=True):
            if row in self._live:
                yield row, new

    def drop(self, rows: Collection[Row]) -> None:
        """Some rows are over.

        Args:
            rows: live ones.
        """
        for row in rows:
            del self._live[row]

    def join(self, other: Continuation[Row]) -> bool:
        """Take the rows of another one along from now on, where the model's cache allows it.

        Args:
            other: of the same model and adapter; both have made a step. It is not used afterwards.

        Returns:
            Whether they were taken; if not, nothing has changed.
        """
        if not (_plain(self._cache) and _plain(other._cache)) or self._token is None or other._token is None:
            return False
        length = max(self._mask.shape[-1], other._mask.shape[-1])
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):  # type: ignore[union-attr]
            gaps = (length - self._mask.shape[-1], length - other._mask.shape[-1])
            for name in ("keys", "values"):
                both = [pad(getattr(layer, name), (0, 0, gap, 0)) for layer, gap in zip((mine, theirs), gaps)]  # noqa: B905
                setattr(mine, name, torch.cat(both))
        masks = [pad(each._mask, (length - each._mask.shape[-1], 0)) for each in (self, other)]
        self._mask = torch.cat(masks)
        self._token = torch.cat([self._token, other._token])
        self._positions = torch.cat([self._positions[:, -1:], other._positions[:, -1:]])
        self._rows += other._rows
        self._live |= other._live
        return True

    def _advance(self, token: Int[Tensor, " rows"]) -> None:
        """The chosen tokens are what is read next."""
        self._positions = self._positions[:, -1:] + 1
        if len(self._live) <= _COMPACT_BELOW * len(self._rows):
            kept = [i for i, row in enumerate(self._rows) if row in self._live]
            self._rows = [self._rows[i] for i in kept]
            index = torch.tensor(kept, device=self._device)
            assert self._cache is not None
            self._cache.batch_select_indices(index)
            token, self._mask, self._positions = token[index], self._mask[index], self._positions[index]
        self._ids = token[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], dim=-1)


def _plain(cache: Cache | None) -> bool:
    """Whether a cache is nothing but the keys and values of every token, which can be padded."""
    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _forward(
    model: nn.Module,
    ids: Int[Tensor, "rows new"],
    mask: Int[Tensor, "rows length"],
    positions: Int[Tensor, "rows new"],
    cache: Cache | None,
) -> tuple[Float[Tensor, "rows vocabulary"], Cache]:
    """The logits behind each row's last token, and the cache with the new tokens in it."""
    # Without it, the logits of all prompt tokens are kept: rows x length x vocabulary.
    sparing = forward_takes(model, "logits_to_keep")
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **({"logits_to_keep": 1} if sparing else {}),
    )
    if not isinstance(getattr(out, "past_key_values", None), Cache):
        kind = type(own_model(model)).__name__
        raise NotYetSupported(f"generation needs a model with a key-value cache; {kind} returns none")
    return out.logits[:, -1], out.past_key_values


def _shared_prefix(model: nn.Module, prompts: Sequence[Sequence[int]], limit: int) -> int:
    """How many leading tokens all rows share and need only be read once; each row keeps a token of its own.

    The padding then stands between the prefix and the rest. Full attention does not see it, but a sliding window or a
    recurrent layer would, so those read every prompt whole.
    """
    config = getattr(model, "config", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    longest = max(map(len, prompts))
    if len(prompts) == 1 or kinds - {"full_attention", "sliding_attention"}:
        return 0
    if window is not None and longest + limit > window:
        return 0
    return len(os.path.commonprefix([list(prompt[:-1]) for prompt in prompts]))


def _prefix_cache(model: nn.Module, prefix: Sequence[int], rows: int, device: torch.device) -> Cache | None:
    """The cache of a prefix, for each of the rows; None without a prefix."""
    if not prefix:
        return None
    ids = torch.tensor([list(prefix)], device=device)
    positions = torch.arange(len(prefix), device=device)[None]
    _, cache = _forward(model, ids, torch.ones_like(ids), positions, None)
    cache.batch_repeat_interleave(rows)
    return cache


def _padded(
    prompts: Sequence[Sequence[int]], shared: int, device: torch.device
) -> tuple[Int[Tensor, "rows new"], Int[Tensor, "rows length"]]:
    """What stands behind the shared prefix, padded on its left, and the mask of the whole.

    What stands under the mask is never read: any id pads.
    """
    length = max(map(len, prompts))
    gaps = [length - len(prompt) for prompt in prompts]
    ids = [[0] * gap + list(prompt[shared:]) for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[1] * shared + [0] * gap + [1] * (length - gap - shared) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
