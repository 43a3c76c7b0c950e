# SPDX-License-Identifier: Apache-2.0
"""SOMF: learn from preferences which entries of the update to keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, logsigmoid

from moored.data.chat import AnswerCollator, Encoded, encode, prompt_ids
from moored.errors import DataError, NeverSupported, require
from moored.hf.checkpoint import core
from moored.hf.prefix_tree import answer_logits
from moored.hf.reader import answer_targets, predicting
from moored.hf.streams import drawn
from moored.method import MethodInfo, Need
from moored.randomness import named_stream
from moored.repairs.base import Delta, Form, Layer, LayerScore, Repair, every
from moored.repairs.lab import Lab

TARGETS = ("factors", "update", "safe_factors")
MASKS = ("binary", "soft")
TINY = 1e-12
"""Least mean of a mask: one that keeps nothing leaves nothing, and divides by no zero."""


@dataclass(frozen=True, kw_only=True)
class SOMF(Repair):
    """Train a mask on the update so that the masked model prefers safe answers, and keep what the mask keeps.

    Paper:
        Yi, Zheng, Wang, Wang, He: A safety realignment framework via subspace-oriented model fusion for large language
        models, Knowledge-Based Systems 2024, arXiv 2405.09055.

    Algorithm:
        For each tensor T of the tuned model's update, with T_0 where it started and tau = T - T_0:

        1. m = sigmoid((phi + log u - log(1 - u)) / `temperature`), u uniform, phi = `init` at first    (`sampled`)
        2. T_m = T_0 + m tau / mean(m)                                                                  (`fused`)
        3. phi <- Adam on the DPO loss -log sigmoid(`beta` (log p/p_0(safe) - log p/p_0(harmful))) of the model with
           T_m; p_0 is the model with T_0. Learning rate `lr`, falling as a cosine           (`preference`, `_train`)
        4. at the end m = 1 where sigmoid(phi) > 0.5, else 0 ("binary"), or m = sigmoid(phi) ("soft"), and T <- T_m

    Args:
        target: what T is. "factors": lora_B, with T_0 = 0, so that s (m B) A stays an adapter. "update": the update as
            a matrix; it needs merging, and 16 bytes per weight. "safe_factors": lora_A and lora_B, with T_0 those of
            the adapter `safe`, which the tuned one was continued from, as the authors do.
        mask: "binary" or "soft".
        steps: of training, >= 0; 0 changes nothing. Authors: their checkpoint of step 500.
        lr: > 0. Authors: 1e-3.
        beta: of DPO, > 0. 0.1 is the usual one; the authors' script names none.
        temperature: > 0. Authors: 0.5.
        init: of the logits phi. Authors: 0, half of everything.
        batch: pairs per step, >= 1. Authors: 16.
        seed: of the order of pairs and of the noise.

    Needs:
        `aligned`; `alignment` (safe answers) and `harmful` (harmful answers) to the same questions: rows are paired by
        prompt. "safe_factors" needs `safe`.

    Cost:
        One forward and backward pass of the model over 2 `batch` rows per step, what a batch's lines begin with in
        common once (`hf.prefix_tree`). A logit, its gradient and two moments per entry of T, 16 bytes each; of rows
        their tokens and two numbers.

    Differs from paper:
        Authors mask both factors, relative to an adapter that tuning was continued from ("safe_factors"). Tuning mostly
        starts from fresh factors; there A - A_0 is unknown and the zero of B is exact, so by default B alone is masked.
        Any mask on factors depends on which factors stand for a product; "update" does not. Their export draws the
        final mask at random; here it is decided. One tuned model, so nothing is merged. Steps and rate are ours.

    Raises:
        ConfigError: a parameter is out of range.
        NeedsError: rows or a model are missing.
        DataError: no two rows share a prompt.
        NeverSupported: factors of what has none, or of another shape than those of `safe`; "update" for an adapter
            without merging.
        NotYetSupported: the model keeps a weight in another form than the files.

    Example:
        >>> roles = {"aligned": "chat", "alignment": "safe.jsonl", "harmful": "harmful.jsonl"}
        >>> repair("adapter", SOMF(), **roles, out="repaired")  # doctest: +SKIP
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="somf",
        title="A safety realignment framework via subspace-oriented model fusion for large language models",
        authors="Yi, Xin et al.",
        arxiv="2405.09055",
        venue="Knowledge-Based Systems",
        year=2024,
        stage="post-fine-tuning",
        needs=frozenset({Need.ALIGNED, Need.ALIGNMENT, Need.HARMFUL}),
        fidelity="variant",
        differs="masks B relative to 0, where the authors mask A and B relative to an adapter that was continued; the "
        "final mask is decided, not drawn",
        null={"steps": 0},
        cost="a forward and backward pass over 2 x 8 rows per step, 100 steps",
    )

    target: str = "factors"
    mask: str = "binary"
    steps: int = 100
    lr: float = 1e-2
    beta: float = 0.1
    temperature: float = 0.5
    init: float = 0.0
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        require(self.target in TARGETS, "SOMF", "target", f"one of {', '.join(TARGETS)}", self.target)
        require(self.mask in MASKS, "SOMF", "mask", f"one of {', '.join(MASKS)}", self.mask)
        require(self.steps >= 0, "SOMF", "steps", "an integer >= 0", self.steps)
        require(self.batch >= 1, "SOMF", "batch", "an integer >= 1", self.batch)
        for name in ("lr", "beta", "temperature"):
            value = getattr(self, name)
            require(0 < value < float("inf"), "SOMF", name, "> 0 and finite", value)
        require(abs(self.init) < float("inf"), "SOMF", "init", "finite", self.init)

    @classmethod
    def paper(cls) -> SOMF:
        """The authors' script: 500 steps of 16 pairs at 1e-3, relative to the adapter that tuning continued."""
        return cls(target="safe_factors", steps=500, lr=1e-3, temperature=0.5, init=0.0, batch=16)

    @property
    def form(self) -> Form:
        """Masked factors are factors."""
        return "dense" if self.target == "update" else "same"

    def needs(self) -> frozenset[Need]:
        """Nothing has to be run to mask nothing."""
        extra = {Need.SAFE} if self.target == "safe_factors" else set()
        return self.info.needs | extra if self.steps else frozenset()

    def prepare(self, lab: Lab) -> Mapping[str, Any]:
        """Steps 1 to 3; the final masks by module and tensor."""
        pairs = paired(lab)
        layers = (lab.source.layer(name) for name in lab.source.modules)
        parts = {layer.module: _Part.of(self, layer) for layer in layers}
        parts = {name: part for name, part in parts.items() if part.logits}
        if not parts:
            lab.notes.append("nothing to mask: there is no update")
            return {}
        with _attached(lab, parts) as model:
            first, last = _train(self, model, parts, pairs, lab)
        masks = {name: part.final(self.mask) for name, part in parts.items() if part.reached}
        entries = torch.cat([mask.flatten() for own in masks.values() for mask in own.values()])
        lab.notes.append(
            f"{len(pairs)} pairs: preference loss {first:.3f} -> {last:.3f}; the mask keeps "
            f"{float(entries.float().mean()):.0%} of {len(entries)} entries in {len(masks)} modules"
        )
        return masks

    def select(self, scores: Sequence[LayerScore]) -> set[str]:
        """Every layer."""
        return every(scores) if self.steps else set()

    def edit(self, layer: Layer, score: LayerScore) -> Delta:
        """Step 4; a module without an update stays."""
        if layer.found is None:
            return layer.delta
        start, end = self.ends(layer)
        return _with(end, {n: fused(getattr(start, n), getattr(end, n), m) for n, m in layer.found.items()})

    def ends(self, layer: Layer) -> tuple[Delta, Delta]:
        """The update with T_0 and the one with T."""
        delta = layer.delta
        if self.target == "update":
            dense = delta.dense().float()
            return Delta(b=torch.zeros_like(dense)), Delta(b=dense)
        if delta.a is None:
            raise NeverSupported(f'{layer.module} has no factors to mask; take SOMF(target="update")')
        if self.target == "factors":
            return replace(delta, b=torch.zeros_like(delta.b)), delta
        safe = layer.update(Need.SAFE)
        if safe is None or safe.a is None or safe.a.shape != delta.a.shape or safe.scale != delta.scale:
            raise NeverSupported(
                f"{layer.module} was not continued from `safe`, whose factors have another shape or scale; take "
                'SOMF(target="factors")'
            )
        return safe, delta


@dataclass
class _Part:
    """The masks on one module's update while they are trained.

    Args:
        start: the update with T_0.
        end: the update with T.
        logits: phi, by name of the tensor.
        noise: the module's own stream.
        now: the update that the model runs with.
        reached: whether a gradient has come.
    """

    start: Delta
    end: Delta
    logits: dict[str, Tensor]
    noise: torch.Generator
    now: Delta
    reached: bool = False

    @classmethod
    def of(cls, method: SOMF, layer: Layer) -> _Part:
        """Logits for the tensors that tuning has moved."""
        start, end = (_single(delta) for delta in method.ends(layer))
        moved = [n for n in ("b", "a") if not _same(getattr(start, n), getattr(end, n))]
        logits = {n: torch.full_like(getattr(end, n), method.init, requires_grad=True) for n in moved}
        if layer.delta.norm() == 0 and method.target != "safe_factors":
            logits = {}
        return cls(start, end, logits, named_stream(core(layer.module), method.seed), start)

    def to(self, device: torch.device) -> None:
        """Move everything there."""
        self.start, self.end = (_moved(delta, device) for delta in (self.start, self.end))
        self.logits = {n: phi.detach().to(device).requires_grad_() for n, phi in self.logits.items()}
        self.now = self.start

    def draw(self, temperature: float) -> dict[str, Tensor]:
        """Steps 1 and 2: T_m by name, with its graph; the model runs with a leaf in its place."""
        masks = {n: sampled(phi, self.noise, temperature) for n, phi in self.logits.items()}
        fresh = {n: fused(getattr(self.start, n), getattr(self.end, n), mask) for n, mask in masks.items()}
        self.now = _with(self.end, {n: value.detach().requires_grad_() for n, value in fresh.items()})
        return fresh

    def slopes(self, fresh: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """What `draw` gave, with the gradients of the leaves; a module that no row reaches has none."""
        found = [(value, getattr(self.now, n).grad) for n, value in fresh.items()]
        self.reached |= any(grad is not None for _, grad in found)
        return [(value, grad) for value, grad in found if grad is not None]

    def final(self, mask: str) -> dict[str, Tensor]:
        """The masks to keep."""
        logits = {n: phi.detach().cpu() for n, phi in self.logits.items()}
        return {n: phi > 0 if mask == "binary" else torch.sigmoid(phi) for n, phi in logits.items()}


def sampled(phi: Float[Tensor, "o i"], stream: torch.Generator, temperature: float) -> Float[Tensor, "o i"]:
    """A relaxed Bernoulli mask.

    Args:
        phi: logits.
        stream: of the noise.
        temperature: T.
    """
    return torch.sigmoid((phi + logistic(phi, stream)) / temperature)


def logistic(like: Float[Tensor, "o i"], stream: torch.Generator) -> Float[Tensor, "o i"]:
    """Logistic noise, drawn on the CPU so that it is the same on any device.

    Args:
        like: has the shape.
        stream: to draw from.
    """
    u = torch.rand(like.shape, generator=stream).clamp(1e-7, 1 - 1e-7)
    return (u.log() - (-u).log1p()).to(like)


def fused(start: Float[Tensor, "o i"], end: Float[Tensor, "o i"], mask: Tensor) -> Float[Tensor, "o i"]:
    """T_0 + m (T - T_0) / mean(m); T itself where nothing is masked, T_0 where everything is.

    Args:
        start: T_0.
        end: T.
        mask: m, of numbers or of booleans.
    """
    if not mask.requires_grad and bool((mask == 1).all()):
        return end
    wide = torch.promote_types(end.dtype, torch.float32)
    m = mask.to(wide)
    return start.to(wide) + m * (end.to(wide) - start.to(wide)) / m.mean().clamp(min=TINY)


def paired(lab: Lab) -> list[tuple[Encoded, Encoded]]:
    """A safe and a harmful answer to the same prompt, once per safe answer; the first harmful one is taken.

    Args:
        lab: with the rows of both roles.

    Raises:
        DataError: no two rows share a prompt.
    """

    def prompt(row: Any) -> tuple[int, ...]:
        return tuple(prompt_ids(lab.tokenizer, row.prompt))

    harmful = {prompt(row): row for row in reversed(lab.rows[Need.HARMFUL])}
    both = [(row, harmful[prompt(row)]) for row in lab.rows[Need.ALIGNMENT] if prompt(row) in harmful]
    if not both:
        raise DataError(
            "no `alignment` row shares its prompt with a `harmful` row, so there is no pair of a safe and a harmful "
            "answer; give answers to the same questions"
        )
    return [(_encoded(lab, safe), _encoded(lab, other)) for safe, other in both]


def preference(
    own: Float[Tensor, "2 pairs"], reference: Float[Tensor, "2 pairs"], beta: float
) -> Float[Tensor, " pairs"]:
    """The DPO loss of every pair.

    Args:
        own: log-probabilities of the safe and of the harmful answers.
        reference: the same of the model with T_0.
        beta: of DPO.
    """
    gain = own - reference
    return -logsigmoid(beta * (gain[0] - gain[1]))


def answer_log_probs(model: Any, pairs: Sequence[tuple[Encoded, Encoded]], pad: int) -> Float[Tensor, "2 pairs"]:
    """Log-probabilities of the safe and of the harmful answers, summed over their tokens.

    Args:
        model: to run.
        pairs: encoded rows.
        pad: id of the padding token.
    """
    batch = AnswerCollator(pad)([safe for safe, _ in pairs] + [harmful for _, harmful in pairs])
    logits = answer_logits(model, batch).float()
    lines = predicting(batch["labels"]).nonzero()[:, 0].to(logits.device)
    found = -cross_entropy(logits, answer_targets(batch["labels"]).to(logits.device), reduction="none")
    return found.new_zeros(2 * len(pairs)).index_add(0, lines, found).view(2, len(pairs))


def _train(
    method: SOMF,
    model: Any,
    parts: Mapping[str, _Part],
    pairs: Sequence[tuple[Encoded, Encoded]],
    lab: Lab,
) -> tuple[float, float]:
    """Step 3; the first loss and the last."""
    size, pad = max(1, lab.batch // 2), lab.tokenizer.pad_token_id
    draws = [
        drawn(step * method.batch, method.batch, len(pairs), seed=method.seed, salt=0) for step in range(method.steps)
    ]
    with torch.no_grad():
        wanted = sorted({pair for draw in draws for pair in draw})
        chunks = [wanted[i : i + size] for i in range(0, len(wanted), size)]
        columns = [answer_log_probs(model, [pairs[pair] for pair in chunk], pad).unbind(dim=1) for chunk in chunks]
        known = dict(zip(wanted, chain.from_iterable(columns), strict=True))
    optimizer = torch.optim.Adam([phi for part in parts.values() for phi in part.logits.values()], lr=method.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, method.steps)
    losses = []
    for draw in draws:
        fresh = {name: part.draw(method.temperature) for name, part in parts.items()}
        total = 0.0
        for chunk in (draw[i : i + size] for i in range(0, len(draw), size)):
            own = answer_log_probs(model, [pairs[pair] for pair in chunk], pad)
            loss = preference(own, torch.stack([known[pair] for pair in chunk], dim=1), method.beta).sum() / len(draw)
            loss.backward()
            total += float(loss.detach())
        ready = [pair for name, own in fresh.items() for pair in parts[name].slopes(own)]
        optimizer.zero_grad()
        torch.autograd.backward([value for value, _ in ready], [grad for _, grad in ready])
        optimizer.step()
        schedule.step()
        losses.append(total)
    return losses[0], losses[-1]


@contextmanager
def _attached(lab: Lab, parts: Mapping[str, _Part]) -> Iterator[Any]:
    """The model with aligned weights in the place of the tuned ones, and the parts' updates added by hooks."""
    model = lab.model.requires_grad_(False)
    with torch.no_grad():
        for matrix in lab.matrices(model).values():
            matrix.value.copy_(matrix.aligned())
    hooks = []
    for name, module in lab.parts(model, list(parts)).items():
        parts[name].to(next(module.parameters()).device)
        hooks.append(module.register_forward_hook(_adding(parts[name])))
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def _adding(part: _Part) -> Any:
    def add(module: nn.Module, args: tuple[Any, ...], output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        x = args[0] if part.now.a is None else linear(args[0], part.now.a)
        return output + part.now.scale * linear(x, part.now.b)

    return add


def _encoded(lab: Lab, row: Any) -> Encoded:
    return encode(lab.tokenizer, row, max_length=lab.max_length)


def _single(delta: Delta) -> Delta:
    return replace(delta, b=delta.b.float(), a=None if delta.a is None else delta.a.float())


def _moved(delta: Delta, device: torch.device) -> Delta:
    return replace(delta, b=delta.b.to(device), a=None if delta.a is None else delta.a.to(device))


def _with(delta: Delta, tensors: Mapping[str, Tensor]) -> Delta:
    return Delta(b=tensors.get("b", delta.b), a=tensors.get("a", delta.a), scale=delta.scale)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
