# SPDX-License-Identifier: Apache-2.0
"""Everything about a protected run that changes: the trainer, the roles, tensors that survive a resume, evidence."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moored.errors import NeverFired
from moored.hf.plan import USER, BatchPlan, optimizer_steps
from moored.method import Published

logger = logging.getLogger("moored")


@dataclass
class Evidence:
    """Proof that a defence acted: how often, and how strongly.

    Args:
        count: times that it acted.
        total: sum of the norms; `total / count` is the mean.
        low: smallest norm.
        high: largest norm.
        unit: what the norm measures.
    """

    unit: str
    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, norm: float) -> None:
        """Count one act of strength `norm`."""
        self.count += 1
        self.total += norm
        self.low, self.high = min(self.low, norm), max(self.high, norm)

    def record(self) -> dict[str, Any]:
        """As plain JSON, for logs and reports."""
        return {
            "count": self.count,
            "mean": self.total / self.count if self.count else None,
            "min": self.low if self.count else None,
            "max": self.high if self.count else None,
            "unit": self.unit,
        }


class Context:
    """What defences see of a run.

    Attributes:
        trainer: the protected trainer.
        defenses: the `Defense` objects, in the order given to `protect`.
        roles: prepared datasets by role name.
        plan: the batch plan of the defence that owns it, or None.
        weights: the trainable parameters by name; filled when training starts.
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
        self._micro = 0
        self._items: Any = None
        self._wrapped: Any = None

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

    # -- what survives -----------------------------------------------------------------------------------------------

    def state(self, defense: Published) -> dict[str, Tensor]:
        """Tensors by name that are saved in every checkpoint and are back after a resume."""
        return self._tensors[defense.info.name]

    def live(self, defense: Published) -> dict[str, Any]:
        """Objects of this process only: hooks, buffers."""
        return self._objects[defense.info.name]

    # -- what is said ------------------------------------------------------------------------------------------------

    def fired(self, defense: Published, norm: float | Tensor, unit: str) -> None:
        """Record that a defence acted with the given strength."""
        self.evidence.setdefault(defense.info.name, Evidence(unit)).add(float(norm))

    def log(self, name: str, value: float | Tensor) -> None:
        """Add a number to the trainer's next log line; the mean is logged as `moored/<name>`."""
        self._numbers[f"moored/{name}"].append(float(value))

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

    # -- extra passes ------------------------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The trainer's own loss on a micro-batch, with a graph, leaving no trace in its counters and random state.

        Runs without gradient synchronisation: the caller differentiates with `torch.autograd.grad`.
        """
        trainer, model = self.trainer, self._wrapped
        model.train()
        inputs = dict(trainer._prepare_inputs(batch))
        with self.quiet(), trainer.accelerator.no_sync(model), trainer.compute_loss_context_manager():
            return trainer.compute_loss(model, inputs, num_items_in_batch=self._items)

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

    def begin(self) -> None:
        """Training starts: weights and optimizer are in place, a checkpoint if any is loaded."""
        self._micro = 0
        self.weights = {n: p for n, p in self.trainer.model.named_parameters() if p.requires_grad}
        for defense in self.defenses:
            defense.attach(self)

    def finish(self) -> None:
        """Training is over, or has failed."""
        for defense in reversed(self.defenses):
            defense.finish(self)
        self._objects.clear()
        self.weights = {}
        self._wrapped = self._items = None

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


@contextlib.contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Restore the random state on exit, so that two passes drop out the same units."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerator_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if accelerator_state is not None:
            torch.cuda.set_rng_state(accelerator_state, device)
