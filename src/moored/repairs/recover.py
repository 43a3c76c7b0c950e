# SPDX-License-Identifier: Apache-2.0
"""Recovery by restoring: put the few numbers back that moved the model away from how it saw harmful prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from moored.errors import require
from moored.hf.hooks import body, decoder_layers
from moored.hf.prefix_tree import answer_logits, laid_out
from moored.hf.reader import Reader, answer_targets
from moored.method import MethodInfo, Need
from moored.ops.largest import kth_largest
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair, every
from moored.repairs.lab import Lab, Matrix

Batch = Mapping[str, Int[Tensor, "..."]]
Taken = dict[str, tuple[Int[Tensor, " _"], Float[Tensor, " _"]]]
"""By module: positions of numbers in the flat weight, and what tuning had made of them."""


@dataclass(frozen=True, kw_only=True)
class Recover(Repair):
    """Step by step, copy the numbers back from the aligned model that a gradient says matter most for safety.

    Paper:
        Yang, Tao, Chen, Xu: Alleviating the Fear of Losing Alignment in LLM Fine-tuning, IEEE S&P 2025,
        arXiv 2504.09757.

    Algorithm:
        h(x) is the hidden state of a prompt's last token behind decoder block L_end = floor(`depth` L)
        (`last_states`); d_h its mean over the harmful prompts in the aligned model, d_b over the task's in the tuned.

        1. g = gradient of the sum over batches of -cos(mean h, d_h), harmful prompts      (`_Bench.pull`)
        2. of the numbers of blocks 1 to L_end with (theta - theta_a) g > 0, the k = ceil(`rho` N) with the largest |g|:
           theta <- theta_a; N counts the numbers of all blocks                            (`_Bench.restore`)
        3. with rollback: g_b the same of the task's prompts and d_b; of the numbers just restored with
           (theta - theta_f) g_b > 0, the share `rollback_rate` with the largest |g_b|: theta <- theta_f
                                                                                           (`_Bench.roll_back`)
        4. after `warmup` steps without rollback: if the task has suffered, begin anew with rollback
        5. of the states after every `check` steps, the last in which the task has not suffered

        The task has suffered where the probability of its answers, token by token in geometric mean, is less than
        (1 - `metric_drop`) times that in the tuned model                                  (`likelihood`)

    Args:
        rho: share of the numbers of all decoder blocks that is restored per step, 0-1; 0 changes nothing. Authors:
            0.002 (0.001 for Llama-2-13B).
        steps: >= 0. Authors: 20.
        warmup: steps after which "auto" decides on rollback, >= 1. Authors: 5.
        check: steps between two looks at the task, >= 1. Authors: 5.
        rollback: "auto", or whether to roll back from the first step on.
        rollback_rate: 0-1. Authors: 0.2.
        metric_drop: how far the task may suffer, 0-1; at 1 it is not looked at. Authors: 0.05, of the task's metric.
        depth: of L_end, as a share of the blocks, above 0 up to 1. Authors: 2/3.
        accumulate: add the gradients of all steps up where there is no rollback, as the authors' code does.

    Needs:
        `aligned`; `harmful` and `calibration`, of which prompts are read, and of the latter answers too for the look at
        the task. Rows that were not trained on say more about it.

    Cost:
        Two passes (four with rollback) of two thirds of the tuned model over the rows per step, forward and backward,
        what a batch's lines begin with in common once (`hf.prefix_tree`). In memory the gradients of the tuned weights
        there, and of rows their tokens. Of 20 steps about 4 % of the numbers are kept.

    Differs from paper:
        Authors evaluate the task's test metric; here it is the probability of the answers in `calibration`, which asks
        for no generation and no judge. Gradients are those of one step (`accumulate`). All rows of both roles are
        used. Numbers as large as the k-th are restored too. Biases of full models stay as they are.

    Raises:
        ConfigError: a parameter is out of range.
        NeedsError: rows or the aligned model are missing.
        DataError: a row of `calibration` has no answer (`metric_drop=1` asks for none).
        NeverSupported: an adapter without merging.
        NotYetSupported: no decoder blocks are found, or their weights have another form than those in the files.

    Example:
        >>> roles = {"aligned": "chat", "harmful": "rows.jsonl", "calibration": "task.jsonl"}
        >>> repair("adapter", Recover(), **roles, merge=True, out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="recover",
        title="Alleviating the Fear of Losing Alignment in LLM Fine-tuning",
        authors="Yang, Kang et al.",
        arxiv="2504.09757",
        venue="IEEE S&P",
        year=2025,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.HARMFUL, Need.CALIBRATION}),
        fidelity="simplified",
        differs="the probability of the task's answers stands for its test metric; gradients of one step",
        null={"rho": 0.0},
        cost="2 to 4 passes of 2/3 of the model over the rows per step, 20 steps; an adapter is merged",
    )
    strengths: ClassVar[Mapping[str, Sequence[Any]]] = {"rho": (0.001, 0.002, 0.005)}

    rho: float = 0.002
    steps: int = 20
    warmup: int = 5
    check: int = 5
    rollback: bool | str = "auto"
    rollback_rate: float = 0.2
    metric_drop: float = 0.05
    depth: float = 2 / 3
    accumulate: bool = False

    def __post_init__(self) -> None:
        """Validate."""
        require(0 <= self.rho <= 1, "Recover", "rho", "in 0-1", self.rho)
        require(self.steps >= 0, "Recover", "steps", "an integer >= 0", self.steps)
        require(self.warmup >= 1, "Recover", "warmup", "an integer >= 1", self.warmup)
        require(self.check >= 1, "Recover", "check", "an integer >= 1", self.check)
        require(self.rollback in (True, False, "auto"), "Recover", "rollback", '"auto", true or false', self.rollback)
        require(0 <= self.rollback_rate <= 1, "Recover", "rollback_rate", "in 0-1", self.rollback_rate)
        require(0 <= self.metric_drop <= 1, "Recover", "metric_drop", "in 0-1", self.metric_drop)
        require(0 < self.depth <= 1, "Recover", "depth", "in 0-1, above 0", self.depth)

    @classmethod
    def paper(cls) -> Recover:
        """The authors' code: 20 steps of 0.2 %, rollback of a fifth, gradients added up."""
        return cls(rho=0.002, steps=20, warmup=5, check=5, rollback_rate=0.2, metric_drop=0.05, accumulate=True)

    @property
    def form(self) -> Form:
        """Single numbers."""
        return "dense"

    def needs(self) -> frozenset[Need]:
        """Nothing has to be run to restore nothing."""
        return self.info.needs if self.rho and self.steps else frozenset()

    def prepare(self, lab: Lab) -> Mapping[str, Any]:
        """All steps; by module, the positions that are restored."""
        harmful, task = list(lab.prompts(Need.HARMFUL)), list(lab.prompts(Need.CALIBRATION))
        answers = list(lab.batches(Need.CALIBRATION)) if self.metric_drop < 1 else []
        end = _end(lab.aligned, self.depth)
        safe = mean_state(lab.aligned, end, harmful)
        lab.forget()
        bench = _Bench(lab.model, end, _within(lab, end))
        if not bench.matrices:
            lab.notes.append(f"nothing to restore: tuning changed no linear layer of the first {end} decoder blocks")
            return {}
        useful = mean_state(bench.model, end, task)
        before = likelihood(bench.model, answers)
        rolls, kept, after = self.rollback is True, 0, before
        moving = True
        while moving and len(bench.done) < self.steps:
            moving = bench.step(self, (harmful, safe), (task, useful), rolls)
            count = len(bench.done)
            if moving and count not in (self.warmup, self.steps) and count % self.check:
                continue
            now = likelihood(bench.model, answers)
            if not answers or now >= (1 - self.metric_drop) * before:
                kept, after = count, now
            elif self.rollback == "auto" and not rolls and count == min(self.warmup, self.steps):
                rolls, kept, moving = True, 0, bench.begin_anew()
        return self._kept(lab, bench, kept, f"with{'' if rolls else 'out'} rollback", (before, after))

    def _kept(self, lab: Lab, bench: _Bench, kept: int, how: str, task: tuple[float, float]) -> Mapping[str, Any]:
        """The positions of the first steps, with a note."""
        found: dict[str, list[Tensor]] = {}
        for taken in bench.done[:kept]:
            for module, (positions, _) in taken.items():
                found.setdefault(module, []).append(positions.cpu())
        numbers = sum(len(positions) for step in found.values() for positions in step)
        said = "" if math.isnan(task[0]) else f"; probability of a token of the task {task[0]:.3f} -> {task[1]:.3f}"
        note = f"{kept} steps {how} restored {numbers} numbers, {numbers / bench.numbers:.2%} of the decoder{said}"
        if not kept and bench.done:
            note = (
                f"nothing is restored: at no look {how} was the task's probability within `metric_drop` of "
                f"{task[0]:.3f}; allow more or lower `rho`"
            )
        lab.notes.append(note)
        return {module: torch.cat(parts) for module, parts in found.items()}

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer; those with nothing to restore stay."""
        return every(scores) if self.rho and self.steps else set()

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """The update with zeros where the aligned model's numbers are to stand."""
        if layer.found is None:
            return layer.delta
        update = layer.delta.dense().float()
        return Delta(b=update.flatten().index_fill(0, layer.found, 0.0).view(update.shape))


@dataclass
class _Bench:
    """The tuned model in memory, edited in place.

    Args:
        model: the tuned model.
        end: L_end.
        matrices: the weights that may be restored.
        done: what each step has restored.
    """

    model: Any
    end: int
    matrices: Mapping[str, Matrix]
    done: list[Taken] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model.requires_grad_(False)
        for matrix in self.matrices.values():
            matrix.parameter.requires_grad_()
        blocks = decoder_layers(self.model).values()
        self.numbers = sum(p.numel() for block in blocks for p in block.parameters())

    def step(
        self,
        method: Recover,
        harmful: tuple[Sequence[Batch], Float[Tensor, " width"]],
        task: tuple[Sequence[Batch], Float[Tensor, " width"]],
        rolls: bool,
    ) -> bool:
        """Steps 1 to 3; False if nothing was left to restore."""
        if rolls or not method.accumulate:
            self.model.zero_grad()
        self.pull(*harmful)
        taken = self.restore(math.ceil(method.rho * self.numbers))
        if taken and rolls and method.rollback_rate:
            self.model.zero_grad()
            self.pull(*task)
            taken = self.roll_back(taken, method.rollback_rate)
        if taken:
            self.done.append(taken)
        return bool(taken)

    def pull(self, batches: Sequence[Batch], toward: Float[Tensor, " width"]) -> None:
        """Add the gradient of the sum over batches of -cos(mean h, d)."""
        for batch in batches:
            (-cosine_similarity(last_states(self.model, self.end, batch).mean(dim=0), toward, dim=0)).backward()

    def restore(self, k: int) -> Taken:
        """Step 2."""

        def sizes() -> Iterator[Float[Tensor, " n"]]:
            for matrix in self.matrices.values():
                if matrix.grad is not None:
                    yield matrix.grad.abs()[_descends(matrix.value, matrix.aligned(), matrix.grad)]

        least = kth_largest(sizes, k)
        taken: Taken = {}
        for module, matrix in self.matrices.items():
            if matrix.grad is None:
                continue
            aligned = matrix.aligned()
            chosen = _descends(matrix.value, aligned, matrix.grad) & (matrix.grad.abs() >= least)
            positions = chosen.flatten().nonzero().squeeze(1)
            if len(positions):
                taken[module] = positions, matrix.value[chosen]
                matrix.value[chosen] = aligned[chosen]
        return taken

    def roll_back(self, taken: Taken, rate: float) -> Taken:
        """Step 3; what stays restored."""
        slopes = {}
        for module, (positions, tuned) in taken.items():
            place, grad = self._places(module, positions), self.matrices[module].grad
            slope = torch.zeros_like(tuned) if grad is None else grad[place]
            slopes[module] = slope.abs() * _descends(self.matrices[module].value[place], tuned, slope)
        count = sum(int((slope > 0).sum()) for slope in slopes.values())
        least = kth_largest(lambda: slopes.values(), math.ceil(rate * count)) if count else math.inf
        stays: Taken = {}
        for module, (positions, tuned) in taken.items():
            back = (slopes[module] > 0) & (slopes[module] >= least)
            self.matrices[module].value[self._places(module, positions[back])] = tuned[back]
            if not back.all():
                stays[module] = positions[~back], tuned[~back]
        return stays

    def begin_anew(self) -> bool:
        """Undo all steps."""
        for taken in self.done:
            for module, (positions, tuned) in taken.items():
                self.matrices[module].value[self._places(module, positions)] = tuned
        self.done.clear()
        self.model.zero_grad()
        return True

    def _places(self, module: str, positions: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], ...]:
        return torch.unravel_index(positions, self.matrices[module].value.shape)


def last_states(model: Any, count: int, batch: Batch) -> Float[Tensor, "lines width"]:
    """Hidden states of the last token of every line, behind the first blocks of the decoder; no others are run.

    Args:
        model: a causal language model.
        count: how many blocks.
        batch: padded on the right.
    """
    name = list(decoder_layers(model))[count - 1]
    layout = laid_out(model, batch)
    reader = Reader({"state": model.get_submodule(name)})
    try:
        with _only(model, name), reader.reading() as read:
            body(model)(**layout.inputs, use_cache=False)
    finally:
        reader.remove()
    last = layout.mask.sum(dim=1, keepdim=True) - 1
    return read["state"].flatten(0, -2)[layout.places.gather(1, last).squeeze(1)]


@torch.no_grad()
def mean_state(model: Any, count: int, batches: Sequence[Batch]) -> Float[Tensor, " width"]:
    """The mean of `last_states` over the lines of all batches.

    Args:
        model: a causal language model.
        count: how many blocks.
        batches: padded on the right.
    """
    total, lines = torch.zeros(1, dtype=torch.float64), 0
    for batch in batches:
        states = last_states(model, count, batch)
        total, lines = total.to(states.device) + states.double().sum(dim=0), lines + len(states)
    return (total / lines).to(next(model.parameters()))


@torch.no_grad()
def likelihood(model: Any, batches: Sequence[Batch]) -> float:
    """The probability of the answers' tokens, in geometric mean; NaN without batches.

    Args:
        model: a causal language model.
        batches: with `labels`.
    """
    total, tokens = 0.0, 0
    for batch in batches:
        logits = answer_logits(model, batch).float()
        targets = answer_targets(batch["labels"]).to(logits.device)
        total += float(cross_entropy(logits, targets, reduction="sum"))
        tokens += len(targets)
    return math.exp(-total / tokens) if tokens else math.nan


def _descends(value: Float[Tensor, "*n"], toward: Float[Tensor, "*n"], grad: Float[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
    """Where going to another value lowers the loss, to first order; by signs, since products underflow."""
    return (value - toward).sign() * grad.sign() > 0


def _end(model: nn.Module, depth: float) -> int:
    """L_end, at least 1; a third of a number of blocks is no exact float."""
    return max(1, math.floor(depth * len(decoder_layers(model)) + 1e-9))


def _within(lab: Lab, end: int) -> dict[str, Matrix]:
    """The weights of the first blocks that tuning has changed."""
    blocks = list(decoder_layers(lab.model).values())[:end]
    inside = {id(p) for block in blocks for p in block.parameters()}
    matrices = {m: matrix for m, matrix in lab.matrices(lab.model).items() if id(matrix.parameter) in inside}
    return {m: matrix for m, matrix in matrices.items() if lab.source.layer(m).delta.norm() > 0}


@contextmanager
def _only(model: nn.Module, last: str) -> Iterator[None]:
    """The decoder ends with one of its blocks inside."""
    path, _, number = last.rpartition(".")
    parent, _, child = path.rpartition(".")
    owner, blocks = model.get_submodule(parent), cast(nn.ModuleList, model.get_submodule(path))
    setattr(owner, child, blocks[: int(number) + 1])
    try:
        yield
    finally:
        setattr(owner, child, blocks)
