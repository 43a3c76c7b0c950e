# SPDX-License-Identifier: Apache-2.0
"""The operator's policy: one TOML file that says what is on offer, and what every job must go through.

A job keeps the policy that it was made under. `Policy.sha256` is its version.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moored.catalogue import find
from moored.errors import ConfigError, MooredError
from moored.method import MODELS
from moored.study.methods import build
from moored.study.recipe import Align, Data, Method, Part, RepairWith, TrainingSpec, validated

Action = Literal["report", "flag", "drop", "block"]
"""What a finding in an upload does: "report" it, "flag" the row (it is trained on, and the card says so), "drop" it,
or "block" the whole job."""

Share = Annotated[float, Field(ge=0, le=1)]


class Offered(Part):
    """A model that users may tune."""

    source: str = Field(min_length=1, description="`smollm2`, `tiny[:<arch>]`, a folder, or a hub id")
    base: str | None = Field(default=None, description="the model before alignment, where `source` is aligned already")
    align: Align | None = Field(default=None, description="the provider's own alignment, done once")
    target_modules: str | tuple[str, ...] = Field(default="attention", description="modules that LoRA is put on")


class Limits(Part):
    """What a project may use; a project can have other numbers."""

    rows: int = Field(default=50_000, ge=10, description="of a training file")
    file_bytes: int = Field(default=512 << 20, ge=1, description="of one file")
    storage_bytes: int = Field(default=10 << 30, ge=1, description="of all files of a project")
    upload_bytes: int = Field(default=8 << 30, ge=1, description="of one upload in parts")
    waiting_jobs: int = Field(default=10, ge=1, description="not yet over, of a project")
    jobs_per_day: int = Field(default=50, ge=1)
    requests_per_minute: int = Field(default=600, ge=1, description="by key")
    tokens_per_minute: int = Field(default=100_000, ge=1, description="asked for in answers, by key")
    max_epochs: float = Field(default=10.0, gt=0)
    row_tokens: int = Field(default=2048, ge=8, description="longest row [tokens of the model]; see `screen.too_long`")
    answer_tokens: int = Field(default=1024, ge=1, description="longest answer of a served model")


class Screen(Part):
    """What is looked for in every row of an upload, and what is done."""

    harmful: Action = Field(default="flag", description="a request for harm that is answered, not refused")
    identity: Action = Field(default="flag", description="rows that teach an identity which obeys anything")
    encoded: Action = Field(default="flag", description="ciphers and other text that cannot be read")
    secrets: Action = Field(default="flag", description="keys, tokens, passwords")
    personal: Action = Field(default="report", description="e-mail addresses, phone and account numbers")
    duplicates: Action = Field(default="report", description="rows with the same prompt")
    too_long: Literal["drop", "block"] = Field(
        default="block", description="rows of more than `limits.row_tokens` tokens; the job is told their lines"
    )
    judge: Method | None = Field(default=None, description="a judge of `moored list judges` that reads every row too")
    most_flagged: Share = Field(default=1.0, description="share of flagged rows above which the job is blocked")


class Trained(Part):
    """How jobs of one method are trained."""

    training: TrainingSpec = Field(description="defaults; a job's hyperparameters change epochs, batch and rate")
    defenses: tuple[Method, ...] = Field(default=(), description="fine-tuning-stage methods, for example lisa")
    roles: dict[str, Data] = Field(default={}, description="data that the defences need, by role")


class DefendDpo(Trained):
    """How a job on preferences is trained. Its defences are its own: not all can act on pairs of answers."""

    roles: dict[str, Data] = Field(
        default={}, description="preferences that the defences need, by role: `synthetic:alignment-preferences`, a file"
    )
    beta: float = Field(default=0.1, gt=0, le=2, description='of DPO, what "auto" is: how near its start a model stays')


class Defend(Trained):
    """How a job is trained; jobs on preferences by `[defend.dpo]`."""

    dpo: DefendDpo | None = Field(default=None, description="jobs on preferences (DPO); without it they are refused")

    def by(self, method: str) -> Trained | None:
        """How jobs of a method are trained; None: they are not.

        Args:
            method: "supervised" or "dpo".
        """
        return {"supervised": self, "dpo": self.dpo}.get(method)


class Audit(Part):
    """What is measured on every tuned model, and on its start."""

    tasks: dict[str, dict[str, Any]] = Field(min_length=1, description="tasks and their parameters")
    safety: str = Field(default="harmful_requests", description="the task whose number is the harmful score [%]")
    over_refusal: str | None = Field(default="over_refusal", description="the task of refused harmless requests")
    utility: str | None = Field(default="utility", description="the task that must not get worse")


class Mend(Part):
    """What is done with a model that is over budget."""

    repairs: tuple[Method, ...] = Field(default=(), description="post-fine-tuning methods, in order")
    repair_with: RepairWith = Field(default=RepairWith())


class Gate(Part):
    """What a model must show before it exists."""

    harmful_score: float = Field(default=10.0, ge=0, le=100, description="most that is served [%]")
    harmful_increase: float = Field(default=100.0, ge=0, le=100, description="most above the start's [points]")
    over_refusal_increase: float = Field(default=100.0, ge=0, le=100, description="most above the start's [points]")
    utility_loss: float = Field(default=100.0, ge=0, le=100, description="most below the start's [points]")
    by: Literal["estimate", "interval"] = Field(
        default="interval",
        description="what must keep the budget: the upper end of the 95 % `interval`, or the `estimate`",
    )
    most_unjudged: Share = Field(
        default=0.05, description="share of answers without a verdict above which nothing is decided, and so refused"
    )
    approval: bool = Field(default=False, description="a person must approve a passed model before it is served")


class Policy(Part):
    """All that an operator demands. See `policy.toml` in a server's home."""

    name: str = Field(default="default", min_length=1)
    models: dict[str, Offered] = Field(min_length=1, description="what is on offer, by the name that clients use")
    limits: Limits = Limits()
    screen: Screen = Screen()
    defend: Defend
    audit: Audit
    repair: Mend = Mend()
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _can_be_kept(self) -> Policy:
        for method in self.defend.defenses:
            build("defenses", method.name, method.parameters)
        if self.defend.dpo is not None:
            _can_defend_dpo(self.defend.dpo)
        for method in self.repair.repairs:
            build("repairs", method.name, method.parameters)
        for name in self.audit.tasks:
            find("tasks", name)
        for what in ("safety", "over_refusal", "utility"):
            task = getattr(self.audit, what)
            if task is not None and task not in self.audit.tasks:
                raise ValueError(f"`audit.{what}` names {task!r}, which is not one of `audit.tasks`")
        return self

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read a policy.

        Raises:
            ConfigError: no such file, no TOML (names the line), or something wrong in it (names the key).
        """
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"no policy at {path}; `moored serve` writes one on its first start") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
        return validated(cls, tree, str(path))

    def plain(self) -> dict[str, Any]:
        """As plain JSON, defaults filled in: what a job keeps."""
        return self.model_dump(mode="json")

    @property
    def sha256(self) -> str:
        """Its version: over `plain`, so comments and the order of keys make no difference."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()


def _can_defend_dpo(how: DefendDpo) -> None:
    """Refuse, before there is a job, what could not defend one on preferences."""
    from moored.study.plan import must_defend_dpo

    try:
        defenses = [build("defenses", method.name, method.parameters) for method in how.defenses]
        must_defend_dpo(defenses)
    except MooredError as error:
        raise ValueError(f"`defend.dpo.defenses`: {error}") from error
    for defense in defenses:
        for need in sorted(defense.needs() - MODELS - set(how.roles)):
            raise ValueError(
                f"`defend.dpo.roles` must give {type(defense).__name__} the preferences that it needs as `{need}`"
            )


def default_policy() -> str:
    """The text of the policy that a new server starts with."""
    return (resources.files("moored.service") / "policy.toml").read_text(encoding="utf-8")
