# SPDX-License-Identifier: Apache-2.0
"""The record of a study: what `results/*.json` holds, and all that tables, plots, reports and cards read.

The shape is strict (unknown fields are errors) and complete: nothing in a report comes from anywhere else.
Shares are percentages (0-100) with their interval and n; times are seconds, sizes bytes, ratios 0-1. A number
that could not be measured is NaN here and `null` in JSON, never a default.

::

    Record ── tasks         what was measured, which way is better
           ── arms ── metrics (by task name), examples, layers, drift, fired, training_log, per_seed
           ── expectations  what was promised beforehand; met or missed is computed, never stored
           ── reported      published numbers beside the measured ones
           ── stages, versions, machine, recipe, command, commit, inputs: enough to run it again
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_serializer,
    model_validator,
)

from moored.errors import DataError, unknown

MAX_PERCENT = 100.0


def _nan_if_none(value: Any) -> Any:
    return math.nan if value is None else value


def _none_if_not_finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


Number = Annotated[
    float,
    BeforeValidator(_nan_if_none),
    PlainSerializer(_none_if_not_finite, return_type=float | None, when_used="json"),
]
"""A float that may be NaN ("not measured"); `null` in JSON, because JSON has no NaN."""

Role = Literal["safety", "over-refusal", "utility", "reading"]
"""What a number stands for; "reading": read from the model itself (perplexity, drift), no verdict on its answers."""
Operator = Literal["<=", "<", ">=", ">"]


class Part(BaseModel):
    """Base of every part of a record: frozen, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Share(Part):
    """A measured share; the JSON form of `moored.metrics.base.Estimate`, field for field."""

    value: Number = Field(description="point estimate in `unit`; NaN = not measured")
    low: Number = Field(default=math.nan, description="lower end of the 95 % interval, in `unit`")
    high: Number = Field(default=math.nan, description="upper end of the 95 % interval, in `unit`")
    n: int = Field(ge=0, description="judged answers behind the estimate")
    unjudged: int = Field(default=0, ge=0, description="answers left out because the judge had no verdict")
    unit: str = Field(default="%", description='"%" = 0-100')
    disagreement: float | None = Field(
        default=None,
        ge=0,
        le=MAX_PERCENT,
        description="share in % of the answers on which the judges of an ensemble disagree; None = a single judge",
    )
    parts: dict[str, Share] = Field(
        default_factory=dict, description="shares of the same answers that are read together, by what they count"
    )

    @model_serializer(mode="wrap")
    def _short(self, whole: Callable[[Share], dict[str, Any]]) -> dict[str, Any]:
        """Without `parts` if there are none, as records were before there were any."""
        return {name: value for name, value in whole(self).items() if name != "parts" or value}

    @model_validator(mode="after")
    def _ordered(self) -> Share:
        known = [x for x in (self.low, self.value, self.high) if math.isfinite(x)]
        if known != sorted(known):
            raise ValueError(f"low <= value <= high must hold; got {self.low}, {self.value}, {self.high}")
        if self.unit == "%" and known and not (known[0] >= 0 and known[-1] <= MAX_PERCENT):
            raise ValueError(f"a share in % must lie in 0-100; got {self.low}, {self.value}, {self.high}")
        return self


class Measured(Part):
    """A task of the study: one column of the table."""

    name: str = Field(min_length=1, description="the task's name in the catalogue; the key in `Arm.metrics`")
    title: str = Field(min_length=1, description="column heading, for example `Harmful score (ASR)`")
    role: Role = Field(description="what the number stands for; the first task of a role is the headline one")
    better: Literal["lower", "higher"] = Field(description="which direction is good")
    judge: str = Field(default="", description="judge and version that gave the verdicts; none of readings")
    scale: Literal["plain", "log"] = Field(
        default="plain",
        description='"log": the scores of single prompts are of the logarithm, and models compare by ratio',
    )
    version: str = Field(default="", description="version of the task")
    data: str = Field(default="", description="rows asked: synthetic set, file name or hub id")


class Example(Part):
    """One answer of one arm. Arms are compared by equal `prompt`."""

    prompt: str = Field(description="the user's message")
    answer: str = Field(description="the model's answer, greedy, possibly cut at the token limit")
    refused: bool | None = Field(default=None, description="the judge's verdict; None = unjudged")
    task: str = Field(default="", description='name of the task it comes from, "" if none')


class LayerRow(Part):
    """What a repair decided about one weight matrix."""

    module: str = Field(min_length=1, description="full path, for example `model.layers.3.mlp.up_proj`")
    cosine: Number = Field(description="Safe LoRA: cosine of the projected and the plain delta, -1 to 1 (paper eq. 2)")
    null_cosine: Number = Field(default=math.nan, description="the same cosine expected of a random delta, -1 to 1")
    signed: Number = Field(
        default=math.nan, description="signed diagnostic: cosine of delta and safety vector, -1 to 1"
    )
    edited: bool = Field(description="whether the repair changed this matrix")


class DriftPoint(Part):
    """Drift at one optimizer step of fine-tuning, measured from the start of fine-tuning."""

    step: int = Field(ge=0, description="optimizer steps done")
    hidden: Number = Field(default=math.nan, description="hidden-embedding drift on the probe rows, mean L2 distance")
    weight: Number = Field(default=math.nan, description="weight drift, L2 norm over all trained weights")


class DepthRow(Part):
    """How far hidden states have moved from the aligned model's, at one depth."""

    depth: int = Field(ge=0, description="0 for the embeddings, then the decoder layers from 1; the last: final norm")
    distance: Share = Field(description="mean distance as a share of the norm, with its interval over prompts")
    angle: Number = Field(description="mean of 1 - cosine, 0 to 2")


class WeightRow(Part):
    """How far one weight matrix has moved from the aligned model's."""

    module: str = Field(min_length=1, description="full path, for example `model.layers.3.mlp.up_proj`")
    distance: Number = Field(description="||dW|| / ||W||, Frobenius norms")


class LossPoint(Part):
    """The training loss at one optimizer step of fine-tuning."""

    step: int = Field(ge=0, description="optimizer steps done")
    loss: Number = Field(description="mean loss of that step, nats per answer token")


class Fired(Part):
    """Proof that a defence acted: what `trainer.moored_report` holds under its name."""

    count: int = Field(ge=0, description="how many times it acted")
    mean: Number = Field(default=math.nan, description="mean size of what it did, in `unit`")
    min: Number = Field(default=math.nan, description="smallest, in `unit`")
    max: Number = Field(default=math.nan, description="largest, in `unit`")
    unit: str = Field(default="", description="what was sized, for example `L2 norm of the perturbation`")


class Attacked(Part):
    """The harmful rows in the user's upload."""

    name: str = Field(default="harmful_mix", description="the attack's name in the catalogue")
    rows: int = Field(ge=0, description="rows in the upload, benign and harmful together")
    harmful: int = Field(ge=0, description="harmful rows among them")

    @property
    def ratio(self) -> float:
        """Harmful share of the upload, 0-1; 0 for an empty upload."""
        return self.harmful / self.rows if self.rows else 0.0


class Repaired(Part):
    """What a post-fine-tuning repair did."""

    method: str = Field(description="the repair's name in the catalogue")
    parameters: dict[str, Any] = Field(default_factory=dict, description="every hyper-parameter used")
    changed: int = Field(ge=0, description="weight matrices that it changed")
    total: int = Field(ge=0, description="weight matrices that it could have changed")
    seconds: Number = Field(default=math.nan, description="wall time of the repair")
    peak_bytes: int | None = Field(default=None, ge=0, description="peak extra memory; None = not measured")


class SeedResult(Part):
    """One seed of a pooled arm."""

    seed: int = Field(description="the seed of this run")
    metrics: dict[str, Share] = Field(default_factory=dict, description="by task name")
    seconds: Number = Field(default=math.nan, description="wall time of the arm under this seed")


class Arm(Part):
    """One row of the table: a model at the end of a chain of stages."""

    name: str = Field(min_length=1, description="unique in the record: `lisa`, `lisa@ratio=0.2`")
    title: str = Field(min_length=1, description="row heading; arms of one sweep share it and become one line in plots")
    kind: Literal["start", "run", "trial"] = Field(
        default="run",
        description='"start": a reference row (before the user\'s data); "run": fine-tuned, or written by the oracle; '
        '"trial": a run that a search tried, measured on validation prompts alone',
    )
    methods: list[str] = Field(
        default_factory=list,
        description="titles of the defences and repairs at work; an empty list on a run = undefended",
    )
    baseline: bool = Field(
        default=False, description="a trivial baseline (scale the adapter, drop modules, interpolate)"
    )
    chain: list[str] = Field(default_factory=list, description="stages in order, in words, with their parameters")
    stages: list[str] = Field(default_factory=list, description="keys of the stages, in order")
    attack: Attacked | None = Field(default=None, description="the user's upload; None for references")
    under: str = Field(
        default="", description="which of the study's attacks it stands under; empty where there is one, and references"
    )
    adapter: bool = Field(default=False, description="known to be a PEFT adapter, and no model of its own")
    sweep: dict[str, float] = Field(
        default_factory=dict, description="axis values of a grid by (dotted) field: {'ratio': 0.1}"
    )
    metrics: dict[str, Share] = Field(default_factory=dict, description="estimates by task name")
    seconds: Number = Field(
        default=math.nan,
        description="wall time of this arm's training and repair, without evaluation",
    )
    passes_per_step: Number = Field(
        default=math.nan, description="forward+backward passes per optimizer step, mean; 1 = plain"
    )
    peak_bytes: int | None = Field(default=None, ge=0, description="peak memory of training; None = unknown")
    scores: dict[str, dict[str, Number]] = Field(
        default_factory=dict,
        description="by task and prompt (`prompt_id`): what the answer counts for in the metric, of which the estimate "
        "is the mean, 0-1 where the unit is %; NaN = unjudged. Empty in records of before this field",
    )
    examples: list[Example] = Field(default_factory=list, description="a few prompts, the same for every arm")
    layers: list[LayerRow] = Field(default_factory=list, description="rows of the repair's layer report")
    depths: list[DepthRow] = Field(default_factory=list, description="drift of hidden states by depth, ascending")
    weights: list[WeightRow] = Field(
        default_factory=list, description="drift of the weight matrices, in the order of the model"
    )
    drift: list[DriftPoint] = Field(default_factory=list, description="by step, ascending")
    training_log: list[LossPoint] = Field(default_factory=list, description="by step, ascending")
    fired: dict[str, Fired] = Field(default_factory=dict, description="by defence")
    repairs: list[Repaired] = Field(default_factory=list, description="in the order they were applied")
    per_seed: list[SeedResult] = Field(
        default_factory=list, description="one entry per seed when the record is pooled over seeds"
    )
    note: str = Field(default="", description="one remark shown with the arm")

    @property
    def ratio(self) -> float | None:
        """Harmful ratio of the upload, 0-1: the sweep's value, else the attack's; None without an attack."""
        if "ratio" in self.sweep:
            return self.sweep["ratio"]
        return self.attack.ratio if self.attack else None

    @property
    def undefended(self) -> bool:
        """Whether this is a fine-tuning run without any defence or repair."""
        return self.kind == "run" and not self.methods and not self.baseline


class Expectation(Part):
    """A promise made before the run: `value(arm) - value(against) op bound`, in points of the task's unit."""

    arm: str = Field(description="name of the arm")
    task: str = Field(description="name of the task")
    op: Operator = Field(description="how value and bound must compare")
    bound: float = Field(description="in the task's unit; a difference in points when `against` is given")
    against: str | None = Field(default=None, description="name of the arm to subtract; None = absolute")


class Reported(Part):
    """A published number to stand beside the measured ones."""

    label: str = Field(description="what it measures, with model and data")
    source: str = Field(description="paper, table, arXiv id")
    value: Number = Field(description="the published number, in `unit`")
    unit: str = Field(default="%", description='"%" = 0-100')


class Asked(Part):
    """The prompts of one set of rows, and how many of them other sets have too."""

    name: str = Field(min_length=1, description="its place in the recipe: `align.data`, `attack`, `task utility`")
    prompts: int = Field(ge=0, description="distinct prompts (compared without case, spacing and end marks)")
    shared: dict[str, int] = Field(
        default_factory=dict, description="prompts shared with other sets by their names; none where nothing is"
    )


class StageRun(Part):
    """One stage of the study as it ran."""

    key: str = Field(description="content-addressed key (hex)")
    kind: str = Field(description="for example align, attack, finetune, repair, evaluate")
    seconds: Number = Field(description="wall time when it was computed")
    cached: bool = Field(description="whether this run reused it")


class Machine(Part):
    """Where it ran; enough to read the seconds, nothing that identifies a person or a host."""

    system: str = Field(default="", description="for example `Linux 6.1 x86_64`")
    processor: str = Field(default="", description="model name of the CPU")
    cores: int = Field(default=0, ge=0, description="cores the run could use; 0 = unknown")
    memory_bytes: int = Field(default=0, ge=0, description="physical memory; 0 = unknown")
    device: str = Field(default="cpu", description="where the model ran, for example `cpu` or `cuda: H200`")
    dtype: str = Field(default="", description="compute precision, for example `bfloat16 autocast`")


class Record(Part):
    """A whole study. `Record.read` takes the plain dict, `Record.plain` gives it back."""

    schema_version: Literal[1] = Field(
        default=1, description="version of the shape; raised when a field changes its meaning"
    )
    name: str = Field(min_length=1, description="file-name stem, for example `demo`")
    title: str = Field(default="", description='heading of the report; "" = the name')
    model: str = Field(default="", description="the model that everything starts from; no machine path")
    created: str = Field(default="", description="UTC, ISO 8601")
    command: str = Field(default="", description="the command line that makes this record again")
    commit: str = Field(default="", description='git commit of moored, "+dirty" if the tree had changes')
    versions: dict[str, str] = Field(default_factory=dict, description="package versions, Python included")
    machine: Machine = Field(default_factory=Machine, description="where it ran")
    seed: int = Field(default=0, description="the first seed")
    seeds: list[int] = Field(default_factory=list, description="all seeds; empty in the input = [seed]")
    recipe: dict[str, Any] = Field(default_factory=dict, description="the full recipe, defaults filled in")
    inputs: dict[str, str] = Field(default_factory=dict, description="sha256 (hex) of data and models, by name")
    data: list[dict[str, str]] = Field(
        default_factory=list,
        description="what was trained on and asked, once each: name, and of public sets part, version and licence",
    )
    prompts: list[Asked] = Field(
        default_factory=list,
        description="every set of rows that was trained on or asked; a task shares no prompt with what is trained on",
    )
    stages: list[StageRun] = Field(default_factory=list, description="every stage, in the order it ran")
    seconds: Number = Field(
        default=math.nan, description="wall time of all stages when each was computed, evaluation included"
    )
    limit: float | None = Field(
        default=None,
        ge=0,
        le=MAX_PERCENT,
        description="of an audit: harmful score [%] up to which the model is called safe; None = no audit",
    )
    tasks: list[Measured] = Field(min_length=1, description="columns of the table, in order")
    arms: list[Arm] = Field(min_length=1, description="rows of the table, in order")
    expectations: list[Expectation] = Field(default_factory=list, description="promises made before the run")
    reported: list[Reported] = Field(default_factory=list, description="published numbers, for orientation")
    warnings: list[str] = Field(default_factory=list, description="shown first, in full")
    demonstration: bool = Field(
        default=False, description="made-up numbers (the demos of this folder); every output says so"
    )

    @model_validator(mode="before")
    @classmethod
    def _all_seeds(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and not data.get("seeds"):
            return {**data, "seeds": [data.get("seed", 0)]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        tasks, arms = [t.name for t in self.tasks], [a.name for a in self.arms]
        for what, names in (("task", tasks), ("arm", arms), ("seed", [str(seed) for seed in self.seeds])):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{what} {', '.join(repeated)} stands twice")
        for arm in self.arms:
            for task in {*arm.metrics, *arm.scores}.union(*(seed.metrics for seed in arm.per_seed)):
                _known("task", task, tasks)
        for promise in self.expectations:
            _known("task", promise.task, tasks)
            _known("arm", promise.arm, arms)
            if promise.against is not None:
                _known("arm", promise.against, arms)
        return self

    @classmethod
    def read(cls, data: Record | Mapping[str, Any]) -> Record:
        """The record behind a plain dict; a `Record` is returned as it is.

        Raises:
            DataError: a field is missing, unknown or wrong; names the first three.
        """
        if isinstance(data, Record):
            return data
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DataError(f"not a results record: {_sentence(error)}") from error

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record from a JSON file.

        Raises:
            DataError: the file is missing, is not JSON, or holds something else.
        """
        try:
            return cls.read(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def plain(self) -> dict[str, Any]:
        """The record as plain JSON types: what `results/*.json` holds; NaN becomes None."""
        return json.loads(self.model_dump_json())

    def save(self, path: Path) -> Path:
        """Write the record as indented JSON, whole or not at all."""
        return write_whole(path, self.model_dump_json(indent=2) + "\n")

    def arm(self, name: str) -> Arm:
        """The arm called `name`.

        Raises:
            ConfigError: no such arm; names the nearest.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise unknown("arm", name, [arm.name for arm in self.arms])

    def task(self, role: Role) -> Measured | None:
        """The headline task of a role: the first one, or None."""
        return next((task for task in self.tasks if task.role == role), None)

    def label(self, arm: Arm, among: Sequence[Arm] | None = None) -> str:
        """The arm's title, with its sweep values where several arms share the title.

        Args:
            arm: an arm of this record.
            among: the arms it has to be told apart from; default: all of the record.
        """
        shared = sum(other.title == arm.title for other in among or self.arms) > 1
        axes = ", ".join(f"{axis.rpartition('.')[2]} {value:g}" for axis, value in arm.sweep.items())
        return f"{arm.title} ({axes or arm.name})" if shared else arm.title

    def difference(self, promise: Expectation) -> float:
        """What an expectation is about: the arm's value, minus that of `against`; NaN if not measured."""
        measured = _value(self.arm(promise.arm), promise.task)
        if promise.against is None:
            return measured
        return measured - _value(self.arm(promise.against), promise.task)

    def met(self, promise: Expectation) -> bool:
        """Whether the point estimate keeps an expectation; what was not measured is missed."""
        value, slack = self.difference(promise), 1e-9
        match promise.op:
            case "<=":
                return value <= promise.bound + slack
            case "<":
                return value < promise.bound - slack
            case ">=":
                return value >= promise.bound - slack
            case ">":
                return value > promise.bound + slack


def write_whole(path: Path, text: str) -> Path:
    """Write `text` to a temporary sibling and rename it, so that `path` is never half-written.

    Raises:
        DataError: the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            part = Path(file.name)
            try:
                file.write(text)
                file.flush()
                part.chmod(0o644)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    return path


def _value(arm: Arm, task: str) -> float:
    return arm.metrics[task].value if task in arm.metrics else math.nan


def _known(what: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r} (known: {', '.join(names)})")


def _sentence(error: ValidationError) -> str:
    """The first three complaints as `field.path: reason`."""
    first = [
        f"{'.'.join(str(part) for part in item['loc']) or 'record'}: {item['msg']}"
        for item in error.errors(include_url=False)[:3]
    ]
    more = error.error_count() - len(first)
    return "; ".join(first) + (f"; and {more} more" if more > 0 else "")
