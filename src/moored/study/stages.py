# SPDX-License-Identifier: Apache-2.0
"""The stages of a study. Each is described by what it depends on, and its key is the hash of exactly that.

::

    align ──────────────┬── finetune ── repair ── repair …
      └···· attack ─────┤          twin ┘
            upload ─────┘
      └──── oracle ────────────────── repair …
    evaluate            one task on the model at the end of any of these, or on the model as shipped

A key covers the kind, the version of the stage's code, its own parameters with defaults filled in, the
contents of the data rows and model files it reads, and the keys of its parents. Arms that begin alike share
those stages. An attack hangs on the aligned model (dotted) only if it looks at it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from moored.attacks.access import Access
from moored.attacks.base import Attack
from moored.attacks.weight_oracle import WeightOracle
from moored.data.load import save_rows
from moored.data.schema import Example, Preference, Row, fingerprint
from moored.defenses.base import Defense
from moored.errors import StudyError
from moored.hf import loaders
from moored.hf import train as training_run
from moored.hf.adapters import is_adapter
from moored.hf.device import precision
from moored.hf.train import Training
from moored.method import Need
from moored.progress import Progress
from moored.repairs import engine
from moored.repairs.base import Repair
from moored.tasks.subject import Loaded

E = TypeVar("E", Row, Preference)

Where = Callable[["Stage"], Path]
"""The folder of a finished stage."""

MODEL = "model"
REPORT = "report.json"
ROWS = "rows.jsonl"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that the study starts from.

    Args:
        where: as the recipe names it.
        resolved: a folder, or a hub id.
        identity: hash of the folder's contents; a hub id stands for itself.
    """

    where: str
    resolved: str
    identity: str


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """Base of stages.

    Attributes:
        kind: of stage.
        version: raised when the same inputs would give another result.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The stages whose artifacts it reads."""
        return ()

    @property
    @abstractmethod
    def words(self) -> str:
        """The stage in a few words, for people."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """All that the result depends on beside the parents, in plain JSON."""

    @abstractmethod
    def run(self, where: Where, work: Path, session: Session, progress: Progress) -> None:
        """Do the work.

        Args:
            where: folders of the parents.
            work: an own folder; what an earlier, stopped attempt left is still in it.
            session: the model that was loaded last.
            progress: told how far it is.
        """

    @cached_property
    def key(self) -> str:
        """64 hex digits; equal if and only if the result is the same."""
        content = {
            "kind": self.kind,
            "version": self.version,
            "parameters": self.parameters(),
            "parents": [parent.key for parent in self.parents],
        }
        return hashlib.sha256(json.dumps(_canonical(content), sort_keys=True).encode()).hexdigest()


@dataclass
class Session:
    """The models loaded last, so that several tasks on one, or with one start, load it once."""

    _measured: tuple[str, Loaded] | None = None
    _start: tuple[str, Loaded] | None = None

    def model(self, subject: Subject, where: Where) -> Loaded:
        """The model and tokenizer of `subject`, and what it must be served with."""
        if self._measured is None or self._measured[0] != _named(subject):
            self._measured = None  # before something else needs the memory
            self._measured = _named(subject), load(subject, where)
        return self._measured[1]

    def start(self, start: AlignStage | Source, where: Where) -> Loaded:
        """What the model of `model` is compared with; itself, if it is that."""
        if self._measured is not None and self._measured[0] == _named(start):
            return self._measured[1]
        if self._start is None or self._start[0] != _named(start):
            self._start = None
            self._start = _named(start), load(start, where)
        return self._start[1]

    def clear(self) -> None:
        """Forget the models, before something else needs the memory."""
        self._measured = self._start = None


@dataclass(frozen=True, kw_only=True)
class AlignStage(Stage):
    """The provider's alignment, merged into the weights."""

    kind: ClassVar[str] = "align"
    source: Source
    rows: tuple[Row, ...] = field(repr=False)
    training: Training
    defenses: tuple[Defense, ...] = ()
    roles: Mapping[str, tuple[Row, ...]] = field(default_factory=dict, repr=False)

    @property
    def words(self) -> str:
        """For example `align on 300 rows, 60 steps, Vaccine(rho=1.0)`."""
        return _training_words("align", len(self.rows), self.training, self.defenses)

    def parameters(self) -> dict[str, Any]:
        """See `Stage.parameters`."""
        return {"model": self.source.identity} | _training_parameters(self)

    def run(self, where: Where, work: Path, session: Session, progress: Progress) -> None:
        """Train and merge."""
        session.clear()
        _train(self, self.source.resolved, self.rows, work, progress, merge=not self.training.full)


@dataclass(frozen=True, kw_only=True)
class AttackStage(Stage):
    """The user's upload. `start` and `base` are given if, and only if, the attack looks at them.

    `judging` are the model folders that it loads itself, such as a guard's.
    """

    kind: ClassVar[str] = "attack"
    method: Attack
    benign: tuple[Row, ...] = field(repr=False)
    harmful: tuple[Row, ...] = field(repr=False)
    start: AlignStage | Source | None = None
    base: Source | None = None
    judging: tuple[Source, ...] = ()

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The aligned model, if the study made it and the attack looks at it."""
        return (self.start,) if isinstance(self.start, Stage) else ()

    @property
    def words(self) -> str:
        """For example `HarmfulMix(n=480, ratio=0.1, seed=0)`."""
        return f"upload by {spelt(self.method)}"

    def parameters(self) -> dict[str, Any]:
        """See `Stage.parameters`."""
        own: dict[str, Any] = {"model": self.start.identity} if isinstance(self.start, Source) else {}
        if self.base is not None:
            own["base"] = self.base.identity
        if judges := self.method.asks():
            own["judges"] = list(judges)
        return own | {
            "method": {self.method.name: by_content(values(self.method), self.judging)},
            "benign": fingerprint(self.benign),
            "harmful": fingerprint(self.harmful),
        }

    def run(self, where: Where, work: Path, session: Session, progress: Progress) -> None:
        """Write the rows and the manifest."""
        upload = self.method.poison(self.benign, self.harmful, self._access(where, session, progress))
        save_rows(upload.rows, work / ROWS)
        write_json(work / "manifest.json", upload.manifest)
        progress(1, 1, f"{len(upload.rows)} rows")

    def _access(self, where: Where, session: Session, progress: Progress) -> Access | None:
        """To the models that the attack looks at."""
        if self.start is None:
            return None
        session.clear()
        base = self.base.resolved if self.base else None
        return Access(aligned=start_path(self.start, where), base=base, progress=progress)


@dataclass(frozen=True, kw_only=True)
class UploadStage(Stage):
    """The user's upload as it is: the same rows in the same order."""

    kind: ClassVar[str] = "upload"
    rows: tuple[Example, ...] = field(repr=False)

    @property
    def words(self) -> str:
        """For example `upload of 120 rows`."""
        return f"upload of {len(self.rows)} rows"

    def parameters(self) -> dict[str, Any]:
        """See `Stage.parameters`."""
        return {"rows": fingerprint(self.rows)}

    def run(self, where: Where, work: Path, session: Session, progress: Progress) -> None:
        """Write the rows."""
        save_rows(self.rows, work / ROWS)
        progress(1, 1, f"{len(self.rows)} rows")


@dataclass(frozen=True, kw_only=True)
class FinetuneStage(Stage):
    """The user's fine-tuning on the upload: an adapter, or all weights.

    `beta` is that of DPO, for which upload and roles are preferences; None: they are rows, and answers are learnt.
    """

    kind: ClassVar[str] = "finetune"
    start: AlignStage | Source
    upload: AttackStage | UploadStage
    training: Training
    beta: float | None = None
    defenses: tuple[Defense, ...] = ()
    roles: Mapping[str, tuple[Example, ...]] = field(default_factory=dict, repr=False)
    probe: tuple[Row, ...] = field(default=(), repr=False)
    base: Source | None = None

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The aligned model, if the study made it, and the upload."""
        return (*((self.start,) if isinstance(self.start, Stage) else ()), self.upload)

    @property
    def words(self) -> str:
        """For example `fine-tune, 60 steps, Lisa(rho=1.0)`."""
        verb = "fine-tune" if self.beta is None else f"fine-tune by DPO (beta {self.beta:g})"
        return _training_words(verb, None, self.training, self.defenses)

    def parameters(self) -> dict[str, Any]:
        """See `Stage.parameters`."""
        own: dict[str, Any] = {} if isinstance(self.start, Stage) else {"model": self.start.identity}
        if self.base is not None:
            own["base"] = self.base.identity
        if self.beta is not None:
            own["dpo"] = {"beta": self.beta}
        return own | _training_parameters(self) | {"probe": fingerprint(self.probe)}

    def run(self, where: Where, work: Path, session: Session, progress: Progress) -> None:
        """Train and keep the adapter."""
        session.clear()
        given = self.given(where)
        start = start_path(self.start, where)
        _train(self, start, given, work, progress, probe=self.probe, base=self.base, beta=self.beta)

    def given(self, where: Where) -> list[Any]:
        """The user's rows or preferences.

        Args:
            where: folder of the upload.
        """
        return read_rows(where(self.upload) / ROWS, Row if self.beta is None else Preference)


@dataclass(frozen=True, kw_only=True)
class OracleStage(Stage):
    """An adapter that was written and not trained, where a fine-tuned one would stand."""

    kind: ClassVar[str] = "oracle"
    roles: ClassVar[Mapping[str, tuple[Row, ...]]] = {}
    start: AlignStage | Source
    base: Source
    method: WeightOracle

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The aligned model, if the study made it."""
        return (self.start,) if isinstance(self.start, Stage) else ()

    @property
    def words(self) -> str:
        """For example `adapter by WeightOracle(norm=1.0, k=8)`."""
        return f"adapter by {spelt(self.method)}"

    def parameters(self) -> dict[str, Any]:
        """See `Stage.parameters`."""
        own = {} if isinstance(self.start, Stage) else {"model": self.start.identity}
        return own | {"base": self.base.identity, "method": {self.method.name: values(self.method)}}

    def run(self, where: Where, work: Path, session: Session, progress: Progress) -> None:
        """Write the adapter."""
        session.clear()
        shutil.rmtree(work / MODEL, ignore_errors=True)
        access = Access(aligned=start_path(self.start, where), base=self.base.resolved)
        manifest = self.method.write(access, work / MODEL)
        write_json(work / REPORT, manifest)
        progress(1, 1, f"{manifest['modules']} modules")


@dataclass(frozen=True, kw_only=True)
class TwinStage(Stage):
    """The start, tuned by the provider on unsafe or on safe rows: an adapter that repairs compare with."""

    kind: ClassVar[str] = "twin"
    defenses: ClassVar[tuple[Defense, ...]] = ()
    roles: ClassVar[Mapping[str, tuple[Row, ...]]] = {}
    role: Need
    start: AlignStage | Source
    rows: tuple[Row, ...] = field(repr=False)
    training: Training

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The aligned model, if the study made it."""
        return (self.start,) if isinstance(self.start, Stage) else ()

    @property
    def words(self) -> str:
        """For example `tune the unaligned twin on 100 rows, 20 steps`."""
        return _training_words(f"tune the {self.role} twin", len(self.rows), self.training, ())

    def parameters(self) -> dict[str, Any]:
        """See `Stage.parameters`. For what role it is tuned makes no difference."""
        own = {} if isinstance(self.start, Stage) else {"model": self.start.identity}
        return own | _training_parameters(self)

    def run(self, where: Where, work: Path, session: Session, progress: Progress) -> None:
        """Train and keep the adapter."""
        session.clear()
        _train(self, start_path(self.start, where), self.rows, work, progress)


@dataclass(frozen=True, kw_only=True)
class RepairStage(Stage):
    """A post-fine-tuning method on the tuned weights."""

    kind: ClassVar[str] = "repair"
    tuned: FinetuneStage | OracleStage | RepairStage
    method: Repair
    base: Source | None = None
    roles: Mapping[str, tuple[Row, ...]] = field(default_factory=dict, repr=False)
    twins: Mapping[Need, TwinStage] = field(default_factory=dict)

    @property
    def parents(self) -> tuple[Stage, ...]:
        """What it repairs, and what it compares with."""
        return (self.tuned, *self.twins.values())

    @property
    def start(self) -> AlignStage | Source:
        """The model that the fine-tuning started from."""
        return self.tuned.start

    @property
    def words(self) -> str:
        """For example `repair by SafeLoRA(fraction=0.6)`."""
        return f"repair by {spelt(self.method)}"

    def parameters(self) -> dict[str, Any]:
        """See `Stage.parameters`."""
        return {
            "method": {self.method.info.name: values(self.method)},
            "base": self.base.identity if self.base else None,
            **({"revision": self.method.revision} if self.method.revision > 1 else {}),
            **{role: fingerprint(rows) for role, rows in self.roles.items()},
        }

    def run(self, where: Where, work: Path, session: Session, progress: Progress) -> None:
        """Repair; a repair that changes nothing is kept, and the record says so."""
        session.clear()
        shutil.rmtree(work)  # unlike training, a stopped repair starts again
        work.mkdir()
        report = engine.repair(
            where(self.tuned) / MODEL,
            self.method,
            aligned=start_path(self.start, where),
            base=self.base.resolved if self.base else None,
            unaligned=self._twin(Need.UNALIGNED, where),
            safe=self._twin(Need.SAFE, where),
            harmful=self.roles.get(Need.HARMFUL),
            alignment=self.roles.get(Need.ALIGNMENT),
            calibration=self.roles.get(Need.CALIBRATION),
            out=work / MODEL,
            merge=self.method.form == "dense",
            progress=progress,
        )
        write_json(work / REPORT, report.record())

    def _twin(self, need: Need, where: Where) -> Path | None:
        return where(self.twins[need]) / MODEL if need in self.twins else None


Subject = Source | AlignStage | FinetuneStage | OracleStage | RepairStage
"""What can be evaluated."""


def _named(subject: Subject) -> str:
    return subject.key if isinstance(subject, Stage) else subject.identity


def start_path(start: AlignStage | Source, where: Where) -> str:
    """The folder (or hub id) of the model that fine-tuning starts from."""
    return str(where(start) / MODEL) if isinstance(start, Stage) else start.resolved


def load(subject: Subject, where: Where) -> Loaded:
    """The model and tokenizer of a subject, an adapter on top of its start, and what it must be served with."""
    if isinstance(subject, AlignStage | Source):
        path, start, adapter = start_path(subject, where), start_path(subject, where), None
    else:
        folder, start = where(subject) / MODEL, start_path(subject.start, where)
        adapter = folder if is_adapter(folder) else None
        path = start if adapter else str(folder)
    model = loaders.load_model(path, adapter=adapter, dtype=precision())
    serving = loaders.load_serving(path, adapter=adapter)
    return Loaded(model=model, tokenizer=loaders.load_tokenizer(start), serving=serving)


def values(thing: Any) -> dict[str, Any]:
    """All parameters of a method, defaults filled in, as plain JSON."""
    own = thing.parameters() if isinstance(thing, Defense | Repair | Attack) else asdict(thing)
    return dict(json.loads(json.dumps(own, default=sorted)))


def spelt(thing: Any) -> str:
    """A method as it would be written, without the parameters that are None or secret."""
    shown = ((f.name, getattr(thing, f.name)) for f in fields(thing) if f.repr)
    inner = ", ".join(f"{name}={value!r}" for name, value in shown if value is not None)
    return f"{type(thing).__name__}({inner})"


def read_rows(path: Path, kind: type[E]) -> list[E]:
    """The rows or preferences of an upload, each row with its own source (which `load_rows` would overwrite)."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [kind.of_record(record) for record in records]


def by_content(value: Any, models: Sequence[Source]) -> Any:
    """Plain JSON in which `model` of a judge, if it is one of these folders, is the hash of what the folder holds.

    Args:
        value: settings.
        models: the folders.
    """
    identities = {source.where: source.identity for source in models}
    if isinstance(value, Mapping):
        return {
            name: identities.get(str(item), item) if name == "model" else by_content(item, models)
            for name, item in value.items()
        }
    return [by_content(item, models) for item in value] if isinstance(value, list | tuple) else value


def _canonical(value: Any) -> Any:
    """Plain JSON in which 1 and 1.0 are the same number."""
    if isinstance(value, Mapping):
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished stage.

    Raises:
        StudyError: the store was damaged.
    """
    try:
        return dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StudyError(f"{folder} is damaged ({error}); delete it and run the same command again") from error


def _training_parameters(stage: AlignStage | FinetuneStage | TwinStage) -> dict[str, Any]:
    rows = {} if isinstance(stage, FinetuneStage) else {"rows": fingerprint(stage.rows)}
    return rows | {
        "training": {name: value for name, value in values(stage.training).items() if name != "save_every"},
        "defenses": [{d.info.name: values(d)} for d in stage.defenses],
        "roles": {role: fingerprint(data) for role, data in sorted(stage.roles.items())},
    }


def _training_words(verb: str, rows: int | None, training: Training, defenses: Sequence[Defense]) -> str:
    count, unit = (training.steps, "step") if training.steps else (training.epochs or 0, "epoch")
    length = f"{count:g} {unit}{'' if count == 1 else 's'}"
    on = f" on {rows} rows" if rows is not None else ""
    return ", ".join([f"{verb}{on}, {length} at lr {training.lr:g}", *map(spelt, defenses)])


def _train(
    stage: AlignStage | FinetuneStage | TwinStage,
    start: str,
    rows: Sequence[Any],
    work: Path,
    progress: Progress,
    *,
    probe: Sequence[Row] = (),
    base: Source | None = None,
    beta: float | None = None,
    merge: bool = False,
) -> None:
    """Train into `work`, going on from the last whole checkpoint that a stopped attempt left there."""
    out = work / MODEL
    _drop_half_written(out)
    how: dict[str, Any] = {
        "training": stage.training,
        "defenses": stage.defenses,
        "roles": {role: list(data) for role, data in stage.roles.items()}
        | ({Need.BASE: base.resolved} if base else {}),
        "merge": merge,
        "progress": progress,
    }
    if beta is None:
        report = training_run.fine_tune(start, list(rows), out, probe=list(probe), **how)
    else:
        from moored.hf.prefer import prefer

        report = prefer(start, list(rows), out, beta=beta, **how)
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    write_json(work / REPORT, report.record())


def _drop_half_written(out: Path) -> None:
    """Remove checkpoints that a killed process was still writing: the trainer's state is written last."""
    for checkpoint in out.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write plain JSON for people and programs.

    Args:
        path: file.
        value: what.
    """
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
