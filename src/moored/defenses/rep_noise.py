# SPDX-License-Identifier: Apache-2.0
"""RepNoise: make the representations of harmful answers look like noise, in every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from moored.context import Context
from moored.data.chat import IGNORED
from moored.defenses.base import Batch, Defense
from moored.errors import NeverSupported, require
from moored.hf.hooks import decoder_layers, mlp_modules
from moored.hf.lens import final_norm
from moored.hf.pairs import Prompt, partners, prompts
from moored.hf.reader import answer_labels, answer_targets
from moored.method import MethodInfo, Need
from moored.ops.mmd import masked_mmd
from moored.randomness import same_randomness

Ascent = Literal["log", "log1p"]

HARMFUL = Need.HARMFUL.value

UNIT = "nat added to the loss or taken from it"


@dataclass(frozen=True, kw_only=True)
class RepNoise(Defense):
    """Train on safe answers, while what the layers make of harmful answers is pushed towards noise and high loss.

    Paper:
        Rosati et al.: Representation noising: A Defence Mechanism Against Harmful Finetuning, NeurIPS 2024,
        arXiv 2405.14577.

    Algorithm:
        Per micro-batch of safe rows, with the harmful answers to the same questions (App. B.1):

        L = l_stab + beta mean_l MMD^2(a_l M, z_l M) - alpha log(mean_l l_l)

        1. l_stab is the trainer's own loss on the safe rows.
        2. a_l is the output of layer l's feed-forward module on the harmful rows, before it is added to the residual
           stream; M keeps the tokens of the answer; z_l ~ N(0, I). Every row is one vector of all its tokens
           compared under five Gaussian kernels (`ops.mmd.masked_mmd`).
        3. l_l is the cross-entropy of the harmful answer read from layer l through the final norm and the output
           layer (`RepNoise._harmful_loss`).

        Rows are paired by their prompts (`hf.pairs.prompts`). A safe row without a partner has l_stab alone. If one
        row of a micro-batch has a partner, the MMD of that micro-batch is left out: two vectors have one distance,
        and the kernels are as wide as that, so that it would be a constant.

    Args:
        alpha: strength of the ascent, >= 0 [nat per log nat]. Paper: 1.
        beta: strength of the noise, >= 0 [nat per unit of MMD^2]. Paper: 0.001.
        ascent: "log" is the paper's -alpha log(mean_l l_l), steep where the loss is small and falling without end;
            "log1p" is the authors' code, -alpha log(1 + mean_l l_l), whose slope is at most alpha.

    Needs:
        harmful: harmful answers to the questions of the trainer's own rows (none if `alpha=beta=0`). The first of
            several answers to one question is used.

    Cost:
        2 forward passes and 1 backward per step, and a second pass through the output layer for every layer. Extra
        memory: the activations of the harmful rows, and one layer's logits (recomputed in the backward pass).

    Differs from paper:
        M is the harmful answer; in the paper it is the tokens that differ between the two rows, position by position,
        which after a shift is the rest of the row with its padding. l_l runs over the outputs of the layers; the
        authors' code adds the embeddings and counts the last one three times. Terms are averaged over accumulated
        micro-batches. MMD compares the rows of one micro-batch on one process, so twice the batch is not two
        micro-batches.

    Raises:
        ConfigError: a parameter is out of range.
        DataError: no training row shares its prompt with a harmful row.
        NeverSupported: one row per micro-batch with `beta` > 0; reentrant checkpointing.
        NotYetSupported: packed rows, rows learnt as a whole, a stream of rows, pairs of answers (DPO), a model
            without a final norm.

    Example:
        >>> RepNoise.paper().parameters()
        {'alpha': 1.0, 'beta': 0.001, 'ascent': 'log'}
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="rep_noise",
        title="Representation noising: A Defence Mechanism Against Harmful Finetuning",
        authors="Rosati, Domenic et al.",
        arxiv="2405.14577",
        venue="NeurIPS 2024",
        year=2024,
        stage="alignment",
        needs=frozenset({Need.HARMFUL}),
        fidelity="paper",
        differs="the mask is the harmful answer, not every position at which the two rows differ",
        null={"alpha": 0.0, "beta": 0.0},
        cost="2 forward + 1 backward per step, all layers through the output layer; the harmful rows' activations",
    )
    reads: ClassVar[frozenset[str]] = frozenset({"answers"})

    alpha: float = 1.0
    beta: float = 0.001
    ascent: Ascent = "log"

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            require(0 <= value < math.inf, "RepNoise", name, ">= 0 and finite", value)
        forms = get_args(Ascent)
        require(self.ascent in forms, "RepNoise", "ascent", f"one of {', '.join(forms)}", self.ascent)

    @classmethod
    def paper(cls) -> RepNoise:
        """The paper's setting for harmful questions: alpha = 1, beta = 0.001, the logarithm of App. B.1."""
        return cls(alpha=1.0, beta=0.001, ascent="log")

    def needs(self) -> frozenset[Need]:
        """Harmful rows, unless both terms are off."""
        return self.info.needs if self.alpha or self.beta else frozenset()

    def looks_at(self) -> frozenset[str]:
        """Nothing, if both terms are off."""
        return self.reads if self.needs() else frozenset()

    def tells_rows_apart(self) -> bool:
        """Every row has a partner of its own."""
        return bool(self.needs())

    def attach(self, ctx: Context) -> None:
        """Find the partners, and have the layers read that the two terms are made of."""
        if not self.needs():
            return
        if self.beta and ctx.trainer._train_batch_size < 2:
            raise NeverSupported(
                "RepNoise compares the rows of a micro-batch with noise, and one row shows no distribution; set "
                "per_device_train_batch_size to 2 or more, or beta=0"
            )
        live = ctx.live(self)
        live["partners"], counts = partners(ctx, HARMFUL)
        ctx.resolve(self, **counts)
        live["mlps"] = mlp_modules(ctx.model) if self.beta else {}
        live["layers"] = decoder_layers(ctx.model) if self.alpha else {}
        live["norm"] = final_norm(ctx.model) if self.alpha else None
        ctx.read({**live["mlps"], **live["layers"]})

    def loss(self, ctx: Context, batch: Batch, own: Tensor) -> Tensor:
        """The equation of the docstring on one micro-batch; `own` is l_stab."""
        if not self.needs():
            ctx.fired(self, 0.0, UNIT)
            return own
        live = ctx.live(self)
        if ctx.first_micro_batch:
            live["generator"] = ctx.generator(shared=False)
        partner: dict[Prompt, int] = live["partners"]
        rows = [partner[prompt] for prompt in prompts(batch) if prompt in partner]
        ctx.log("rep_noise/pairs", float(len(rows)))
        terms = self._terms(ctx, ctx.collate(HARMFUL, rows)) if rows else []
        if not terms:
            return own
        added = torch.stack(terms).sum()
        ctx.fired(self, added.detach().abs(), UNIT)
        return own + ctx.batch_mean(added)

    def _terms(self, ctx: Context, harmful: Batch) -> list[Tensor]:
        """The terms beta mean_l MMD^2 and -alpha log(mean_l l_l), if on, from one pass over the harmful rows."""
        with same_randomness(ctx.trainer.args.device):
            read = ctx.features(harmful)
        terms = []
        if self.beta and len(harmful["input_ids"]) > 1:
            noise = self._noise(ctx, read, harmful)
            ctx.log("rep_noise/mmd", noise.detach())
            terms.append(self.beta * noise)
        if self.alpha:
            loss = self._harmful_loss(ctx, read, harmful)
            ctx.log("rep_noise/harmful_loss", loss.detach())
            terms.append(-self.alpha * (torch.log1p(loss) if self.ascent == "log1p" else torch.log(loss)))
        return terms

    def _noise(self, ctx: Context, read: Mapping[str, Tensor], harmful: Batch) -> Float[Tensor, ""]:
        """mean_l MMD^2(a_l M, z_l M)."""
        mask = answer_labels(harmful) != IGNORED
        found = []
        for name in ctx.live(self)["mlps"]:
            a = read[name].reshape(*mask.shape, -1)
            z = gaussian(int(mask.sum()), a.shape[-1], ctx.live(self)["generator"])
            found.append(_again(masked_mmd, a, z, mask))
        return torch.stack(found).mean()

    def _harmful_loss(self, ctx: Context, read: Mapping[str, Tensor], harmful: Batch) -> Float[Tensor, ""]:
        """mean_l l_l: what stays in memory is one layer's logits at a time."""
        norm: nn.Module = ctx.live(self)["norm"]
        labels = answer_labels(harmful)
        targets = answer_targets(labels)

        def through_the_lens(hidden: Tensor) -> Tensor:
            with ctx.trainer.accelerator.autocast():
                normed = norm(hidden)
            return cross_entropy(ctx.answer_logits(normed, labels), targets)

        return torch.stack([_again(through_the_lens, read[name]) for name in ctx.live(self)["layers"]]).mean()


def _again(function: Any, *inputs: Tensor) -> Tensor:
    """The value of a function whose insides are computed again in the backward pass instead of being kept."""
    value: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return value


def gaussian(tokens: int, width: int, generator: torch.Generator) -> Float[Tensor, "tokens width"]:
    """Noise z ~ N(0, I) for the answer tokens alone, so that padding draws none."""
    return torch.randn(tokens, width, generator=generator, device=generator.device)
