# SPDX-License-Identifier: Apache-2.0
"""Everything about a protected run that changes: the trainer, the roles, tensors that survive a resume, evidence."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import datasets
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moored.errors import NeverFired
from moored.evidence import Evidence
from moored.hf.freezing import Freezing
from moored.hf.hooks import body, forward_takes, in_evaluation, refuse_reentrant_checkpointing
from moored.hf.plan import USER, BatchPlan, optimizer_steps
from moored.hf.reader import AnswerHead, Reader, predicting
from moored.hf.sharding import drop_gathered, through_output, whole
from moored.hf.streams import drawn
from moored.method import Published
from moored.randomness import same_randomness
from moored.serving import Serving

logger = logging.getLogger("moored")

Batch = dict[str, Any]
"""One micro-batch, as the trainer's collator made it."""

START = "start"
"""Where the weights of the start of the run are kept among the tensors of the defences."""

BODY = "body"
"""What the reader calls the decoder's output."""

NOT_INPUTS = ("labels", "shift_labels", "completion_mask")
"""What a batch may hold beside the model's inputs."""


class Context:
    """What defences see of a run.

    Attributes:
        trainer: the protected trainer.
        defenses: the `Defense` objects, in the order given to `protect`.
        roles: prepared datasets by role name.
        plan: the batch plan of the defence that owns it, or None.
        weights: the trainable parameters by name; filled when training starts.
        freezing: which of them stand still; ends with the run.
    """

    def __init__(self, trainer: Any, defenses: tuple[Any, ...], roles: Mapping[str, Any]):
        self.trainer = trainer
        self.defenses = defenses
        self.roles = dict(roles)
        self.plan: BatchPlan | None = None
        self.weights: dict[str, nn.Parameter] = {}
        self.evidence: dict[str, Evidence] = {}
        self.resolved: dict[str, dict[str, Any]] = {}
        self._tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)
        self._objects: dict[str, dict[str, Any]] = defaultdict(dict)
        self._numbers: dict[str, list[float]] = defaultdict(list)
        self._curated: dict[str, dict[str, Any]] = defaultdict(dict)
        self._micro = 0
        self._items: Any = None
        self._wrapped: Any = None
        self.freezing = Freezing()
        self.is_learning = False
        self._reader: Any = None
        self._head: Any = None
        self._seen: dict[str, Tensor] = {}

    # -- where the run is ------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The optimizer step under way, from 0 over the whole run, resumes included."""
        return self.trainer.state.global_step

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.trainer.state.max_steps

    @property
    def first_micro_batch(self) -> bool:
        """Whether this is the first micro-batch of its optimizer step."""
        return self._micro == 0

    @property
    def role(self) -> str:
        """The role that feeds the optimizer step under way."""
        return self.plan.role_at(self.step) if self.plan else USER

    @property
    def epoch_user_steps(self) -> int:
        """Optimizer steps that one pass over the user rows takes."""
        args = self.trainer.args
        return optimizer_steps(
            len(self.trainer.train_dataset),
            batch=self.trainer._train_batch_size,
            accumulate=args.gradient_accumulation_steps,
            world=args.world_size,
        )

    @property
    def user_steps(self) -> int:
        """Optimizer steps that the run would take on the user rows alone."""
        args = self.trainer.args
        return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.epoch_user_steps)

    @property
    def serving(self) -> Serving | None:
        """What requests to the trained model must carry."""
        return next((serving for d in self.defenses if (serving := d.serving())), None)

    # -- what survives -----------------------------------------------------------------------------------------------

    def state(self, defense: Published) -> dict[str, Tensor]:
        """Tensors by name that are saved in every checkpoint and are back after a resume."""
        return self._tensors[defense.info.name]

    def live(self, defense: Published) -> dict[str, Any]:
        """Objects of this process only: hooks, buffers."""
        return self._objects[defense.info.name]

    def curated(self, defense: Published) -> dict[str, Any]:
        """What a defence's `curate` found out: in this process, for every run until `release`."""
        return self._curated[defense.info.name]

    # -- what is said ------------------------------------------------------------------------------------------------

    def fired(self, defense: Published, norm: float | Tensor, unit: str) -> None:
        """Record that a defence acted with the given strength."""
        self.evidence.setdefault(defense.info.name, Evidence(unit)).add(_number(norm))

    def log(self, name: str, value: float | Tensor) -> None:
        """Add a number to the trainer's next log line; the mean is logged as `moored/<name>`."""
        self._numbers[f"moored/{name}"].append(_number(value))

    def take_log(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: sum(values) / len(values) for name, values in self._numbers.items()}
        self._numbers.clear()
        return means

    def resolve(self, defense: Published, **parameters: Any) -> None:
        """Say and keep what an automatic parameter became."""
        self.resolved.setdefault(defense.info.name, {}).update(parameters)
        if self.trainer.is_world_process_zero():
            said = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in parameters.items())
            logger.info("%s: %s", type(defense).__name__, said)

    def report(self) -> dict[str, Any]:
        """What every defence did, as plain JSON."""
        return {
            d.info.name: {
                **self.evidence.get(d.info.name, Evidence("acts")).record(),
                "parameters": d.parameters(),
                "resolved": self.resolved.get(d.info.name, {}),
            }
            for d in self.defenses
        }

    def require_evidence(self) -> None:
        """Raise `NeverFired` if a defence never acted: a defence that is silently off is the worst failure."""
        for d in self.defenses:
            if d.info.name not in self.evidence:
                raise NeverFired(
                    f"{type(d).__name__} never acted in {self.step} optimizer steps, so this model is not defended; "
                    f"its parameters were {d.parameters()}"
                )

    # -- rows of a role ----------------------------------------------------------------------------------------------

    def rows(self, role: str) -> Any:
        """The dataset of a role, in the columns that the collator takes; `user` is what is trained on."""
        return self.columns(self.trainer.train_dataset if role == USER else self.roles[role], role)

    def columns(self, data: Any, role: str = USER) -> Any:
        """A prepared dataset in the columns that the collator takes; one that is no `datasets.Dataset` stays whole.

        Args:
            data: what `curate` is given, or the rows of a role.
            role: for messages.
        """
        return (
            self.trainer._remove_unused_columns(data, description=role) if isinstance(data, datasets.Dataset) else data
        )

    def collate(self, role: str, rows: Sequence[int]) -> Batch:
        """Rows of a role by position, as one micro-batch on the run's device."""
        return self.batch(self.rows(role), rows, role)

    def batch(self, data: Any, rows: Sequence[int], role: str = USER) -> Batch:
        """Rows of a dataset by position, as one micro-batch on the run's device.

        Args:
            data: in the columns that the collator takes (`rows`, `columns`).
            rows: positions.
            role: for messages.
        """
        trainer = self.trainer
        collator = trainer.data_collator
        if not isinstance(data, datasets.Dataset):
            collator = trainer._get_collator_with_removed_columns(collator, role)
        return trainer._prepare_inputs(collator([data[i] for i in rows]))

    def window(
        self, role: str, batches: int | None = None, size: int | None = None, turn: int = 0, turns: int = 1
    ) -> list[Batch]:
        """The micro-batches of a role that belong to the optimizer step under way: a function of the step alone.

        Args:
            role: whose rows; each process draws its own share of an endless stream of seeded passes.
            batches: micro-batches to draw; None: as many as the trainer accumulates.
            size: rows per micro-batch; None: the trainer's.
            turn: which of the step's windows this is, from 0.
            turns: how many windows the step draws; each is shared out among all processes.
        """
        args, size = self.trainer.args, size or self.trainer._train_batch_size
        count = batches or args.gradient_accumulation_steps
        turn += self.step * turns
        first = (turn * args.world_size + args.process_index) * count * size
        seed = args.data_seed if args.data_seed is not None else args.seed
        salt = 2 + sorted(self.roles).index(role)
        rows = drawn(first, count * size, len(self.roles[role]), seed=seed, salt=salt)
        return [self.collate(role, rows[i * size : (i + 1) * size]) for i in range(count)]

    def generator(self, *, shared: bool) -> torch.Generator:
        """Random numbers for the optimizer step under way: a function of seed and step, so the same after a resume.

        Args:
            shared: the same in all processes, on the CPU; else each process's own, on its device.
        """
        args = self.trainer.args
        seed = args.seed * 1_000_003 + self.step
        if shared:
            return torch.Generator().manual_seed(seed)
        return torch.Generator(args.device).manual_seed(seed * args.world_size + args.process_index)

    def every_batch(self, role: str) -> Iterator[Batch]:
        """All rows of a role once, in order; every process gets all."""
        size = self.trainer._train_batch_size
        total = len(self.rows(role))
        for start in range(0, total, size):
            yield self.collate(role, range(start, min(start + size, total)))

    # -- extra passes ------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The model that is trained, without wrappers of parallel training."""
        return self.trainer.model

    def loss(self, batch: Batch, items: Any = ..., *, dropout: bool = True) -> Tensor:
        """The trainer's own loss on a micro-batch, with a graph, leaving no trace in its counters.

        Runs without gradient synchronisation: the caller differentiates with `torch.autograd.grad`.

        Args:
            batch: the micro-batch under way, or one of another role.
            items: tokens that the loss is averaged over; left out, those of the optimizer step under way; None: those
                of `batch`.
            dropout: False: in evaluation mode, which also leaves out activation checkpointing.
        """
        trainer, model = self.trainer, self._wrapped if self._wrapped is not None else self.trainer.model
        model.train()
        mode = contextlib.nullcontext() if dropout else in_evaluation(model)
        inputs = dict(trainer._prepare_inputs(batch))
        items = self._items if items is ... else items
        with self.quiet(), mode, trainer.accelerator.no_sync(model), trainer.compute_loss_context_manager():
            return trainer.compute_loss(model, inputs, num_items_in_batch=items)

    def gradient_on(
        self, batches: Sequence[Batch], loss_of: Callable[[Batch], Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The gradient of the trainer's own loss over micro-batches of a role, and that loss.

        It is scaled as the gradient of an optimizer step on these micro-batches would be (accumulated, averaged over
        all processes), and `p.grad` and the random state stay as they are. For the `gradient` seam and later ones.

        Args:
            batches: what `window` returned.
            loss_of: another loss of one micro-batch, scaled by `step_mean`, in place of the trainer's own.

        Returns:
            One tensor for each of `weights`, zero where the loss does not depend on it; the loss, a scalar.
        """
        trainer, model = self.trainer, self._wrapped
        items = trainer._get_num_items_in_batch(list(batches), trainer.args.device)
        scaled = self._items_scale_the_loss(items)
        own_items, self._items = self._items, items
        kept = {name: w.grad for name, w in self.weights.items()}
        for w in self.weights.values():
            w.grad = None
        total = torch.zeros((), device=trainer.args.device)
        try:
            with same_randomness(trainer.args.device), self.quiet():
                for i, batch in enumerate(batches):
                    last = i == len(batches) - 1
                    with contextlib.nullcontext() if last else trainer.accelerator.no_sync(model):
                        if loss_of is None:
                            loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=items)
                        else:
                            loss = loss_of(batch)
                        loss = loss if scaled else loss / len(batches)
                        trainer.accelerator.backward(loss)
                    total += loss.detach()
            zero = torch.zeros_like
            found = {name: zero(w) if w.grad is None else w.grad for name, w in self.weights.items()}
        finally:
            self._items = own_items
            for name, w in self.weights.items():
                w.grad = kept[name]
        return found, total

    @contextlib.contextmanager
    def standing_at(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """The trained weights have other values inside; afterwards theirs again, bit for bit.

        Values are written past autograd's version counters, so a graph that was built before stays valid.

        Args:
            values: by the names of `weights`; those left out keep theirs.
        """
        drop_gathered(self.model)
        try:
            with moved([self.weights[name] for name in values], list(values.values())):
                yield
        finally:
            drop_gathered(self.model)

    @property
    def start(self) -> Mapping[str, Tensor]:
        """The values of `weights` at the start of the run, resumes included; needs `reads` to have "start"."""
        return self._tensors[START]

    @contextlib.contextmanager
    def at_start(self) -> Iterator[None]:
        """The model as it was at the start of the run, in evaluation mode and without gradients: the reference."""
        with torch.no_grad(), in_evaluation(self.model), self.standing_at(self._tensors[START]):
            yield

    def read(self, modules: Mapping[str, nn.Module]) -> None:
        """Read the outputs of these modules too, in the trainer's own passes and in `features`; called in `attach`.

        Args:
            modules: by dotted name, as `hf.hooks.decoder_layers` and `mlp_modules` give them; defences may share them.

        Raises:
            NeverSupported: reentrant checkpointing.
        """
        refuse_reentrant_checkpointing(self.model, "a loss on them would have no gradient")
        self._reader = self._reader or Reader({})
        self._reader.add(modules)

    def seen(self, name: str = BODY) -> Float[Tensor, "lines length width"]:
        """What a module put out in the trainer's own pass on the micro-batch under way, with its graph.

        Args:
            name: a name given to `read`; left out, the last hidden states (`reads` has "answers").
        """
        return self._seen[name]

    def hidden(self, batch: Batch) -> Float[Tensor, "lines length width"]:
        """Last hidden states of a pass of one's own on a micro-batch; weights, mode and gradients as they stand."""
        return self.features(batch)[BODY]

    def features(self, batch: Batch) -> dict[str, Float[Tensor, "... width"]]:
        """What every module that is read puts out in a pass of one's own; weights, mode and gradients as they stand.

        A few modules (OPT's feed-forward) put lines and positions into one axis.
        """
        inputs = {name: value for name, value in batch.items() if name not in NOT_INPUTS} | {"use_cache": False}
        if forward_takes(self.model, "logits_to_keep"):
            inputs["logits_to_keep"] = 1
        with self._reader.reading() as read, self.trainer.accelerator.autocast():
            output = (self._wrapped if self._wrapped is not None else self.model)(**inputs)
        return {name: through_output(self.model, found, output.logits) for name, found in read.items()}

    def answer_logits(
        self, hidden: Float[Tensor, "lines length width"], labels: Int[Tensor, "lines length"]
    ) -> Float[Tensor, "answers vocabulary"]:
        """The logits that predict the answer tokens, row by row, in fp32.

        Args:
            hidden: from `seen` or `hidden`.
            labels: of the same micro-batch (`hf.reader.answer_labels`).
        """
        with self.trainer.accelerator.autocast():
            return self._head(hidden[predicting(labels)])

    def step_mean(self, total: Tensor, count: Tensor | int) -> Tensor:
        """A sum over answer tokens as this micro-batch's part of the mean over the optimizer step.

        Scaled exactly as the trainer scales its own loss, so that accumulated micro-batches and processes add up.

        Args:
            total: the sum over this micro-batch's answer tokens.
            count: how many these are.
        """
        args = self.trainer.args
        if not self._items_scale_the_loss(self._items):
            return total / torch.as_tensor(count).clamp(min=1)
        share = total / self._items
        return share * args.world_size if args.average_tokens_across_devices else share

    def batch_mean(self, value: Tensor) -> Tensor:
        """A mean over this micro-batch as its part of the mean over the micro-batches of the optimizer step.

        For terms that are no sum over tokens (a distance between batches, a hinge). Scaled as the trainer scales its
        own loss; processes add up to their mean.

        Args:
            value: of this micro-batch alone.
        """
        if not self._items_scale_the_loss(self._items):
            return value  # the trainer divides by the micro-batches itself
        return value / self.trainer.current_gradient_accumulation_steps

    def _items_scale_the_loss(self, items: Any) -> bool:
        """Whether the trainer's loss is divided by the tokens of the optimizer step, not by micro-batches."""
        own = getattr(self.trainer, "loss_is_scaled_for_ga", None)
        accepts = self.trainer.model_accepts_loss_kwargs or self.trainer.compute_loss_func is not None
        return items is not None and (accepts if own is None else own)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Extra passes inside leave the trainer's own metrics as they were (TRL books tokens in `compute_loss`)."""
        kept = {
            name: copy.deepcopy(getattr(self.trainer, name))
            for name in ("_metrics", "_total_train_tokens")
            if hasattr(self.trainer, name)
        }
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(self.trainer, name, value)

    # -- called by the protected trainer -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def micro_batch(self, model: nn.Module, num_items: Any) -> Iterator[None]:
        """Bracket one micro-batch."""
        self._wrapped, self._items = model, num_items
        yield
        self._micro = 0 if self.trainer.accelerator.sync_gradients else self._micro + 1

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """The trainer's own training step runs inside: its loss is the one that is learnt from."""
        self.is_learning = True
        try:
            yield
        finally:
            self.is_learning = False

    def defended_loss(self, inputs: Batch, own_loss: Callable[[Batch], Tensor]) -> Tensor:
        """The trainer's own loss with the `loss` seams of all defences around it, the first given outermost."""
        batch = dict(inputs)  # the trainer's own loss may change what it is given
        reading: Any = self._reader.reading() if self._reader else contextlib.nullcontext({})
        with reading as self._seen:
            own = loss = own_loss(inputs)
        self.is_learning = False  # passes that the seams make are theirs, not what is learnt from
        for defense in reversed(self.defenses):
            loss = defense.loss(self, batch, loss)
        self._seen = {}
        return through_output(self.model, loss, own)

    def begin(self) -> None:
        """Training starts: weights and optimizer are in place, a checkpoint if any is loaded."""
        self._micro = 0
        self.weights = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        read = frozenset().union(*(d.looks_at() for d in self.defenses))
        if "answers" in read:
            self._head = AnswerHead(self.model)
            self._reader = Reader({BODY: body(self.model)})
        if "start" in read and START not in self._tensors:
            self._tensors[START] = {name: w.detach().clone() for name, w in self.weights.items()}
        for defense in self.defenses:
            defense.attach(self)
        self._compile_anew()

    def finish(self) -> None:
        """Training is over, or has failed."""
        for defense in reversed(self.defenses):
            defense.finish(self)
        self.freezing.thaw()
        if self._reader:
            self._reader.remove()
        self._reader, self._head, self._seen = None, None, {}
        self._objects.clear()
        self.weights = {}
        self._wrapped = self._items = None
        self._compile_anew()

    def _compile_anew(self) -> None:
        """Hooks have come or gone, and code that torch.compile has made before does not look for hooks again."""
        if self.trainer.args.torch_compile:
            torch.compiler.reset()

    def forget(self) -> None:
        """A new run starts: drop evidence and tensors of the last one."""
        self.evidence.clear()
        self.resolved.clear()
        self._tensors.clear()
        self._numbers.clear()

    def signature(self) -> list[dict[str, Any]]:
        """What must be equal for a checkpoint to be resumed."""
        return [{"name": d.info.name, "parameters": d.parameters()} for d in self.defenses]

    def saved(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON and tensors for a checkpoint."""
        tensors = {
            f"{name}/{key}": value.detach().contiguous().cpu()
            for name, entries in self._tensors.items()
            for key, value in entries.items()
        }
        return {
            "defenses": self.signature(),
            "evidence": {name: asdict(e) for name, e in self.evidence.items()},
        }, tensors

    def restore(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `saved`."""
        self.evidence = {name: Evidence(**fields) for name, fields in record["evidence"].items()}
        for full_name, value in tensors.items():
            name, key = full_name.split("/", 1)
            self._tensors[name][key] = value.to(self.trainer.args.device)


def _number(value: float | Tensor) -> float:
    return float(whole(value)) if isinstance(value, Tensor) else float(value)


@contextlib.contextmanager
def moved(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Weights have other values inside; afterwards theirs again, bit for bit, unseen by autograd's version counters."""
    saved = [w.detach().clone() for w in weights]
    try:
        for w, value in zip(weights, values, strict=True):
            w.data.copy_(value)
        yield
    finally:
        for w, value in zip(weights, saved, strict=True):
            w.data.copy_(value)
