# SPDX-License-Identifier: Apache-2.0
"""When a job will be finished, by how fast it has been so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moored.service.job_recipe import TITLES

_OVER = ("finished", "reused")


@dataclass
class Pace:
    """Reads a job's progress, line by line, and extrapolates it.

    Steps that are left take as long as those since the training began or went on, and a task takes on the job's model
    what it took on the start. A repair that may become necessary is not foreseen.
    """

    took: dict[str, float] = field(default_factory=dict)
    """Seconds of tasks, by their words: what they took last."""
    here: set[str] = field(default_factory=set)
    """Tasks that the job's model has behind it."""
    since: tuple[int, int] | None = None
    """When the training began or went on, and at which step."""
    began: int = 0
    """When the task at hand began."""
    line: Mapping[str, Any] = field(default_factory=dict)
    """The last one that says something of the job's own model."""

    def see(self, line: Mapping[str, Any]) -> None:
        """Read on.

        Args:
            line: of `progress.jsonl`.
        """
        kind, state, own = line.get("kind"), line.get("state"), line.get("row") in TITLES.values()
        if kind == "evaluate" and state in _OVER:
            self.took[line["words"]] = float(line["seconds"])
            self.here |= {line["words"]} if own else set()
        if not own:
            return
        if kind in ("finetune", "repair") and state == "started":
            self.here, self.since = set(), None
        if kind == "evaluate" and state == "started":
            self.began = int(line["at"])
        if kind == "finetune" and state == "working" and self.since is None:
            self.since = (int(line["at"]), int(line["done"]))
        self.line = line

    def finish(self) -> int | None:
        """When it will be over, in seconds since 1970; None: nothing to tell by, yet."""
        kind, state = self.line.get("kind"), self.line.get("state")
        if not self.took or not self.line or (kind == "repair" and state not in _OVER):
            return None
        left = sum(seconds for words, seconds in self.took.items() if words not in self.here)
        if kind == "finetune" and state not in _OVER:
            steps = self._steps()
            if steps is None:
                return None
            left += steps
        if kind == "evaluate" and state not in _OVER:
            left -= min(int(self.line["at"]) - self.began, self.took.get(self.line["words"], 0.0))
        return math.ceil(int(self.line["at"]) + left)

    def _steps(self) -> float | None:
        """Seconds of the steps that are left; None before there are two steps to tell by."""
        if self.since is None or self.line.get("done", 0) <= self.since[1]:
            return None
        at, done = self.since
        return (int(self.line["at"]) - at) / (self.line["done"] - done) * (self.line["total"] - self.line["done"])
