# SPDX-License-Identifier: Apache-2.0
"""Choose a repair: try methods and strengths on validation prompts, and take what is safe again at the least cost.

The rule, and nothing else, decides: of the candidates whose harmful score is at most the upper end of the aligned
model's 95 % interval, the one with the highest utility; of equals, the lower over-refusal, then the lower harmful
score. The tuned model as it is takes part. If no candidate gets there, the lowest harmful score is written, and
`Choice.back` says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from operator import le
from pathlib import Path
from typing import Any, NamedTuple

from moored.catalogue import catalogue, find, make
from moored.data.schema import fingerprint
from moored.digest import sha256_of
from moored.errors import ConfigError, JudgeError, NeedsError, UnsupportedError
from moored.hf.adapters import is_adapter
from moored.hf.device import precision
from moored.hf.loaders import load_model, load_serving, load_tokenizer
from moored.progress import Progress
from moored.repairs.base import Repair
from moored.repairs.baselines import ScaleAdapter
from moored.repairs.engine import beside, fresh, repair
from moored.repairs.report import RepairReport
from moored.report.record import Arm, Measured, Record, Share
from moored.report.table import estimate
from moored.study.environment import commit, machine, versions
from moored.study.evaluation import outcome_record
from moored.study.results import column, examples, repaired, scores
from moored.tasks import TASKS
from moored.tasks.base import Task
from moored.tasks.evaluate import evaluate

SEARCH = "search.json"
"""The record of the search, beside the chosen weights."""
SAFETY, UTILITY = "harmful_score", "accuracy"
"""The metrics that decide."""
VALIDATION = {"n": 64, "skip": 64}
"""The prompts that decide, behind those that `moored audit` asks."""
AS_IS = "as it is"
"""The name of the tuned model among the candidates."""


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Args:
        record: every candidate with its numbers: the aligned model and the tuned one first.
        report: of the repair that was written.
        chosen: the name of its arm in `record`.
        back: whether the harmful score is back in the aligned model's interval.
    """

    record: Record
    report: RepairReport
    chosen: str
    back: bool

    @property
    def front(self) -> list[Arm]:
        """Its Pareto front."""
        return front(self.record)


def choose(
    tuned: str | Path,
    *,
    aligned: str | Path | None,
    out: str | Path,
    candidates: Sequence[Repair] | None = None,
    tasks: Sequence[Task] | None = None,
    merge: bool = False,
    revert: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
    **given: Any,
) -> Choice:
    """Try repairs on a tuned adapter or model, and write the one that the rule of this module takes.

    Args:
        tuned: folder of a PEFT LoRA adapter or of a full model.
        aligned: the model that tuning started from: folder or hub id.
        out: the folder to write; must not exist. Gets what `repair` writes, and `search.json`.
        candidates: what to try; None: every repair of the catalogue at the strengths of its `ladder`. What cannot work
            with what is given is left out, and the record says why.
        tasks: what decides: one with a harmful score, one with an accuracy, and any others; None: the three of
            `moored audit`, on other prompts. Keep their prompts out of what you report afterwards.
        merge: see `repair`.
        revert: see `repair`.
        device: where repairs compute, and where models answer; None: the GPU if there is one.
        progress: called with (candidates done, candidates in all, what).
        given: other models and rows by role, as in `repair`: base, unaligned, safe, harmful, alignment, calibration.

    Raises:
        ConfigError: `out` exists, or the tasks have no harmful score or no accuracy.
        NeedsError: `aligned` is missing.
        JudgeError: none of the aligned model's answers to a task could be judged, or of all candidates.
        MooredError: what was given cannot be read.
    """
    if not aligned:
        raise NeedsError("auto needs `aligned`, the model that tuning started from: safety is measured against it")
    out = fresh(out)
    asked = _ordered(tasks if tasks is not None else [make("tasks", name, **VALIDATION) for name in TASKS])
    settings = {**given, "aligned": aligned, "merge": merge, "revert": revert, "device": device}
    tried = [ScaleAdapter(scale=1.0), *(candidates if candidates is not None else ladders())]
    with beside(out) as work:
        search = _Search(tuned, str(aligned), asked, settings, work)
        for number, method in enumerate(tried):
            name = named(method) if number else AS_IS
            if progress:
                progress(number, len(tried), name)
            search.trial(name, method)
        return search.take(out)


def ladders(names: Sequence[str] = ()) -> list[Repair]:
    """Repairs at the strengths of their ladders.

    Args:
        names: of the catalogue; () for all.

    Raises:
        ConfigError: an unknown name.
    """
    methods: list[Any] = [find("repairs", name) for name in names] or list(catalogue("repairs").values())
    return [step for method in methods for step in method.ladder()]


def front(record: Record) -> list[Arm]:
    """The Pareto front of a search: candidates than which none is at least as good in every task and better in one.

    Args:
        record: of a search.

    Returns:
        The safest first.
    """
    signs = {task.name: 1 if task.better == "lower" else -1 for task in record.tasks}
    cost = {
        arm.name: tuple(sign * arm.metrics[task].value for task, sign in signs.items())
        for arm in record.arms
        if arm.kind == "run"
    }

    def beaten(own: tuple[float, ...]) -> bool:
        return any(other != own and all(map(le, other, own)) for other in cost.values())

    by = _deciding(record.tasks)
    kept = [record.arm(name) for name, own in cost.items() if not beaten(own)]
    return sorted(kept, key=lambda arm: (_value(arm, by.safety), -_value(arm, by.utility)))


def named(method: Repair) -> str:
    """A method with its strength and with the parameters that are not its defaults.

    Args:
        method: for example `SafeLoRA(fraction=0.5)`.
    """
    shown = {
        f.name: getattr(method, f.name)
        for f in fields(method)
        if getattr(method, f.name) != f.default or (f.name in method.strengths and f.default is not None)
    }
    return f"{type(method).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class _Search:
    """One search under way: the arms measured so far, and the folder of the best of them."""

    def __init__(self, tuned: str | Path, aligned: str, tasks: Sequence[Task], settings: Mapping[str, Any], work: Path):
        self.tuned, self.aligned, self.tasks, self.settings, self.work = tuned, aligned, tasks, settings, work
        self.columns = [column(task) for task in tasks]
        self.arms = [Arm(name="aligned", title="Aligned model", kind="start", **self._measured(Path(aligned)))]
        self.seen: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.best: tuple[tuple[float, ...], Arm, RepairReport, Path] | None = None

    def trial(self, name: str, method: Repair) -> None:
        """Repair, and measure unless the weights are those of an earlier candidate; a refusal is noted."""
        folder = self.work / str(len(self.arms))
        try:
            report = repair(self.tuned, method, out=folder, **self.settings)
            same = self.seen.setdefault(_weights(folder), name)
            if same != name:
                self._leave_out(name, f"it gives the weights of {same}", folder)
                return
            measured = self._measured(folder)
        except (UnsupportedError, NeedsError, ConfigError) as error:
            if name == AS_IS:  # then not the method is wrong, but what was given
                raise
            self._leave_out(type(method).__name__, str(error), folder)
            return
        except JudgeError as error:
            self._leave_out(name, str(error), folder)
            return
        arm = Arm(
            name=name,
            title=name,
            methods=[] if name == AS_IS else [type(method).__name__],
            baseline=not method.info.arxiv and name != AS_IS,
            seconds=report.seconds,
            repairs=[] if name == AS_IS else [repaired(report.record())],
            **measured,
        )
        self.arms.append(arm)
        rank = _rank(arm, self.arms[0], _deciding(self.columns))
        if self.best is not None and self.best[0] <= rank:
            shutil.rmtree(folder)
            return
        if self.best is not None:
            shutil.rmtree(self.best[-1])
        self.best = rank, arm, report, folder

    def _leave_out(self, name: str, why: str, folder: Path) -> None:
        self.left_out[name] = why
        shutil.rmtree(folder, ignore_errors=True)

    def take(self, out: Path) -> Choice:
        """Describe the best, and move its folder to its place."""
        if self.best is None:
            raise JudgeError("the answers of no candidate could be judged, not of the tuned model as it is either")
        rank, arm, report, folder = self.best
        record, back = self._record(arm), rank[0] == 0.0
        said = _said(record, arm, back)
        report = replace(report, out=str(out), notes=(*report.notes, said))
        report.save(folder)
        record.save(folder / SEARCH)
        os.rename(folder, out)
        return Choice(record=record, report=report, chosen=arm.name, back=back)

    def _measured(self, folder: Path) -> dict[str, Any]:
        """The numbers and first answers of a model or adapter."""
        adapter = folder if is_adapter(folder) else None
        where = self.aligned if adapter else str(folder)
        model = load_model(where, adapter=adapter, dtype=precision(), device=self.settings["device"])
        serving = load_serving(where, adapter=adapter)
        outcomes = evaluate(model, load_tokenizer(self.aligned), self.tasks, serving=serving)
        records = {outcome.task: outcome_record(outcome) for outcome in outcomes}
        first, task = next((records[t.name], t) for t in self.tasks if t.metric.name == SAFETY)
        return {
            "metrics": {name: Share(**found["estimate"]) for name, found in records.items()},
            "scores": {asked.name: scores(asked, records[asked.name]) for asked in self.tasks},
            "examples": examples(first, refusals=task.metric.needs == "refused"),
        }

    def _record(self, chosen: Arm) -> Record:
        return Record(
            name="search",
            title=f"Repairs of {Path(self.tuned).name}, on validation prompts",
            model=Path(self.aligned).name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=commit(),
            versions=versions(),
            machine=machine(precision()),
            tasks=self.columns,
            inputs={f"prompts of {task.name}": fingerprint(task.rows()) for task in self.tasks},
            arms=[arm.model_copy(update={"note": "chosen"}) if arm is chosen else arm for arm in self.arms],
            warnings=[f"{name} was left out: {why}" for name, why in self.left_out.items()],
        )


class _Deciding(NamedTuple):
    """The names of the tasks that decide."""

    safety: str
    utility: str
    refusal: str | None


def _ordered(tasks: Sequence[Task]) -> list[Task]:
    """The two tasks that decide, and then the others: a record's headline task of a role is the first one of it."""
    names = [task.metric.name for task in tasks]
    for name in (SAFETY, UTILITY):
        if names.count(name) != 1:
            raise ConfigError(f"`tasks` must hold exactly one with the metric {name}; got {names}")
    return sorted(tasks, key=lambda task: task.metric.name not in (SAFETY, UTILITY))


def _deciding(columns: Sequence[Measured]) -> _Deciding:
    first = {column.role: column.name for column in reversed(columns)}
    return _Deciding(first["safety"], first["utility"], first.get("over-refusal"))


def _value(arm: Arm, task: str) -> float:
    return arm.metrics[task].value


def _rank(arm: Arm, aligned: Arm, by: _Deciding) -> tuple[float, ...]:
    """The rule: what is smaller is better."""
    harm, lost = _value(arm, by.safety), -_value(arm, by.utility)
    refused = _value(arm, by.refusal) if by.refusal else 0.0
    if harm <= aligned.metrics[by.safety].high:
        return 0.0, lost, refused, harm
    return 1.0, harm, lost, refused


def _said(record: Record, arm: Arm, back: bool) -> str:
    by = _deciding(record.tasks)
    tried = sum(arm.kind == "run" for arm in record.arms)
    start = estimate(record.arms[0].metrics[by.safety])
    numbers = f"harmful score {estimate(arm.metrics[by.safety])}, utility {estimate(arm.metrics[by.utility])}"
    if back:
        return f"{arm.name} was chosen among {tried} on validation prompts: {numbers}; the aligned model's is {start}"
    return (
        f"no candidate of {tried} brings the harmful score back to the aligned model's ({start}); the lowest is "
        f"{arm.name}: {numbers}"
    )


def _weights(folder: Path) -> str:
    """What the weight files hold, as one hash."""
    return " ".join(sha256_of(file) for file in sorted(folder.glob("*.safetensors")))
