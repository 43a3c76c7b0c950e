# SPDX-License-Identifier: Apache-2.0
"""What a job's hyperparameters come to: "auto" is the policy's value, and the policy's bounds hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moored.service.policy import Limits
from moored.service.problems import wrong
from moored.study.recipe import TrainingSpec

AUTO = "auto"
NAMES = {
    "supervised": ("n_epochs", "batch_size", "learning_rate_multiplier"),
    "dpo": ("n_epochs", "batch_size", "learning_rate_multiplier", "beta"),
}
"""By method."""
LARGEST_BATCH = 256
LARGEST_MULTIPLIER = 100.0
LARGEST_BETA = 2.0


def checked(asked: Mapping[str, Any], limits: Limits, param: str, method: str) -> dict[str, Any]:
    """The hyperparameters of a request, "auto" where there is none.

    Args:
        asked: as they were sent; None is "auto".
        limits: of the project.
        param: where they were sent, for example "method.supervised.hyperparameters".
        method: "supervised" or "dpo".

    Raises:
        ApiProblem: 400, an unknown one or a value out of range.
    """
    names = NAMES[method]
    for name in asked:
        if name not in names:
            raise wrong(f"Unknown hyperparameter '{name}'; known are {', '.join(names)}.", f"{param}.{name}")
    found = {name: AUTO if asked.get(name) is None else asked[name] for name in names}
    _whole(found["n_epochs"], math.floor(limits.max_epochs), f"{param}.n_epochs")
    _whole(found["batch_size"], LARGEST_BATCH, f"{param}.batch_size")
    _number(found["learning_rate_multiplier"], LARGEST_MULTIPLIER, f"{param}.learning_rate_multiplier")
    _number(found.get("beta", AUTO), LARGEST_BETA, f"{param}.beta")
    return found


def _whole(value: Any, most: int, param: str) -> None:
    if value == AUTO:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise wrong(f"{value!r} must be 'auto' or a whole number from 1 to {most}.", param, "invalid_value")


def _number(value: Any, most: float, param: str) -> None:
    if value == AUTO:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
        said = f"{value!r} must be 'auto' or a number above 0 and at most {most:g}."
        raise wrong(said, param, "invalid_value")


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """As they came out of "auto".

    Args:
        n_epochs: passes over the rows.
        batch_size: rows per optimizer step.
        learning_rate_multiplier: of the policy's learning rate.
        beta: of DPO; None without it.
    """

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    beta: float | None = None

    def plain(self) -> dict[str, Any]:
        """As clients see them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def resolved(
    asked: Mapping[str, Any], training: TrainingSpec, rows: int, beta: float | None = None
) -> tuple[Hyperparameters, dict[str, Any]]:
    """What the hyperparameters are, and what the policy's training becomes by them.

    A micro-batch never holds more rows than the operator's: a larger batch is accumulated, so that it takes no more
    memory.

    Args:
        asked: what `checked` gave.
        training: of the policy.
        rows: that are trained on.
        beta: of the policy, for DPO.
    """
    changes: dict[str, Any] = {}
    batch = training.batch * training.accumulate
    if asked["batch_size"] != AUTO:
        batch = int(asked["batch_size"])
        micro = next(size for size in range(min(batch, training.batch), 0, -1) if batch % size == 0)
        changes |= {"batch": micro, "accumulate": batch // micro}
    multiplier = 1.0
    if asked["learning_rate_multiplier"] != AUTO:
        multiplier = float(asked["learning_rate_multiplier"])
        changes["lr"] = training.lr * multiplier
    passes = training.epochs if training.epochs is not None else (training.steps or 0) * batch / rows
    if asked["n_epochs"] != AUTO:
        passes = int(asked["n_epochs"])
        changes |= {"steps": None, "epochs": float(passes)}
    if asked.get("beta", AUTO) != AUTO:
        beta = float(asked["beta"])
    known = Hyperparameters(
        n_epochs=max(1, math.ceil(passes)), batch_size=batch, learning_rate_multiplier=multiplier, beta=beta
    )
    return known, training.model_dump(mode="json") | changes
