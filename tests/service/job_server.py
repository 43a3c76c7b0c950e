"""A server's database, a tiny policy, and stand-ins for the parts that a worker asks."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from moored.data.load import load_rows, save_rows
from moored.data.preferences import load_preferences
from moored.data.tiny import tiny_rows
from moored.progress import Pause
from moored.service.clock import now
from moored.service.database import Base, Checkpoint, Database, Event, File, Job, Model, Project
from moored.service.failures import reason
from moored.service.folder import JobFolder
from moored.service.hyperparameters import NAMES
from moored.service.ids import new_id
from moored.service.launchers.base import Ended, NoSlot
from moored.service.pipeline import Pipeline
from moored.service.policy import Policy
from moored.service.seams import Outcome, Seams
from moored.service.settings import ServerSettings
from moored.service.tuning import Stop, run
from moored.service.worker import Worker

TREE: dict[str, Any] = {
    "name": "tiny",
    "models": {
        "tiny": {
            "source": "tiny",
            "align": {"data": [{"data": "synthetic:alignment", "limit": 8}], "training": {"steps": 2, "batch": 4}},
        }
    },
    "defend": {
        "training": {"epochs": 2, "batch": 4, "lr": 1e-2, "save_every": 2, "dtype": "float32"},
        "defenses": [{"lisa": {"rho": 1.0}}],
        "roles": {"alignment": {"data": "synthetic:alignment", "limit": 8}},
    },
    "limits": {"row_tokens": 96},
    "audit": {"tasks": {"harmful_requests": {"n": 2}, "over_refusal": {"n": 2}, "utility": {"n": 2}}},
    "repair": {"repairs": [{"safe_lora": {"fraction": 0.5}}]},
    "gate": {"by": "estimate", "harmful_score": 100.0},
}


def in_a_thread(settings: ServerSettings) -> ThreadLauncher:
    return ThreadLauncher(settings=settings)


@dataclass
class ThreadLauncher:
    """Runs the study in a thread of this process: everything of `tuning` but the process."""

    settings: ServerSettings
    slots: int = 1
    running: dict[str, Any] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)

    def check(self) -> None:
        pass

    def start(self, command: Sequence[str], folder: Path, environment: Any) -> dict[str, Any]:
        if found := self.find(folder):
            return found
        if sum(each.thread.is_alive() for each in self.running.values()) >= self.slots:
            raise NoSlot
        self.started.append(folder.name)
        stop = Stop()
        thread = threading.Thread(target=self._work, args=(JobFolder(folder), stop))
        self.running[folder.name] = SimpleNamespace(thread=thread, stop=stop)
        thread.start()
        return {"folder": folder.name}

    def _work(self, folder: JobFolder, stop: Stop) -> None:
        try:
            run(folder, self.settings.store, stop)
        except Pause:
            return
        except Exception as error:  # noqa: BLE001 - as the process does
            folder.write_json("failure.json", reason(error))

    def find(self, folder: Path) -> dict[str, Any] | None:
        found = self.running.get(folder.name)
        return {"folder": folder.name} if found is not None and found.thread.is_alive() else None

    def poll(self, handle: Any) -> Ended | None:
        return None if self.running[handle["folder"]].thread.is_alive() else Ended(code=0)

    def stop(self, handle: Any, *, grace: float) -> None:
        found = self.running[handle["folder"]]
        found.stop.asked = True
        found.thread.join()


@dataclass
class Stand:
    """Stand-ins for the other parts, and what was asked of them."""

    settings: ServerSettings
    database: Database
    passes: tuple[str, ...] = ("tuned", "repaired")
    complaints: list[Any] = field(default_factory=list)
    block: str = ""
    logged: list[str] = field(default_factory=list)
    carded: list[Any] = field(default_factory=list)

    def seams(self) -> Seams:
        return Seams(
            bytes_of=self.bytes_of,
            check=lambda path, *, limits, method, counted_by: self.complaints,
            rows=self.rows,
            screen=self.screen,
            decide=self.decide,
            beside=lambda outcome: {"README.md": f"# {outcome.job.id}\n"},
            card=lambda job, outcome, model: self.carded.append((job.id, job.error, outcome is not None)),
            publish=self.publish,
            keep=self.keep,
            log=lambda action, job_id, details: self.logged.append(action),
        )

    def bytes_of(self, sha256: str) -> Path:
        path = self.settings.blobs / f"{sha256}.jsonl"
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def rows(self, path: Path) -> Any:
        pairs = b"preferred_output" in path.read_bytes()
        return load_preferences(path) if pairs else load_rows(path, source="benign")

    def screen(self, rows: Any, policy: Policy, model: str) -> Any:
        return SimpleNamespace(
            rows=rows, blocked=bool(self.block), reason=self.block, record=lambda: {"rows": len(rows)}
        )

    def decide(self, record: Any, policy: Policy, *, arm: str, start: str) -> Any:
        passed = arm in self.passes
        sentence = f"{arm} against {start}: {'passed' if passed else 'refused'}"
        return SimpleNamespace(passed=passed, sentence=sentence, record=lambda: {"passed": passed})

    def publish(self, outcome: Outcome, beside: Any) -> Model:
        """Kept under a name, whole; twice is once."""
        with self.database.writing() as session:
            known = session.query(Model).filter_by(job_id=outcome.job.id).one_or_none()
            if known is not None:
                return known
            folder = self.settings.model(outcome.job.id)
            shutil.rmtree(folder, ignore_errors=True)
            part = folder.with_name(f".{folder.name}")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(outcome.weights, part)
            part.rename(folder)
            model = Model(
                id=f"ft:{outcome.job.model}:one::{outcome.job.id.rpartition('-')[2]}",
                project_id=outcome.job.project_id,
                job_id=outcome.job.id,
                base=outcome.job.model,
                start=outcome.under,
                folder=f"models/{outcome.job.id}",
                sha256=weights_hash(folder),
                state="passed" if outcome.decision.passed else "refused",
                created_at=now(),
            )
            session.add(model)
            return model

    def keep(self, session: Any, project_id: str, name: str, data: bytes) -> str:
        return add_file(self.settings, session, data, project_id=project_id, purpose="fine-tune-results")


def weights_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def add_file(settings: ServerSettings, session: Any, data: bytes, *, project_id: str, purpose: str) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    settings.blobs.mkdir(parents=True, exist_ok=True)
    (settings.blobs / f"{sha256}.jsonl").write_bytes(data)
    file = File(
        id=new_id("file"),
        project_id=project_id,
        filename="a",
        purpose=purpose,
        bytes=len(data),
        sha256=sha256,
        created_at=now(),
    )
    session.add(file)
    return file.id


@dataclass
class Bench:
    """A server's home with a database, and a worker on it."""

    settings: ServerSettings
    database: Database
    tree: dict[str, Any]
    stand: Stand
    launcher: Any

    @classmethod
    def at(cls, home: Path, tree: dict[str, Any] | None = None) -> Bench:
        settings = ServerSettings(home=home, lease=5)
        home.mkdir(parents=True, exist_ok=True)
        database = Database(settings.database_url)
        Base.metadata.create_all(database.engine)
        with database.writing() as session:
            if session.get(Project, "one") is None:
                session.add(Project(id="one", name="one", created_at=now()))
        return cls(settings, database, tree or TREE, Stand(settings, database), in_a_thread(settings))

    def upload(self, rows: int = 16, data: bytes | None = None) -> str:
        self.settings.blobs.mkdir(parents=True, exist_ok=True)
        if data is None:
            data = save_rows(tiny_rows(rows), self.settings.blobs / "new.jsonl").read_bytes()
        with self.database.writing() as session:
            return add_file(self.settings, session, data, project_id="one", purpose="fine-tune")

    def job(
        self,
        *,
        seed: int = 3,
        hyperparameters: dict[str, Any] | None = None,
        method: str = "supervised",
        **fields: Any,
    ) -> str:
        policy = Policy.model_validate(self.tree)
        auto = dict.fromkeys(NAMES[method], "auto")
        job = Job(
            id=new_id("ftjob"),
            project_id="one",
            created_at=now(),
            model="tiny",
            training_file=fields.pop("training_file", None) or self.upload(),
            seed=seed,
            method={"type": method, method: {"hyperparameters": auto | (hyperparameters or {})}},
            policy=policy.plain(),
            policy_sha256=policy.sha256,
            **fields,
        )
        with self.database.writing() as session:
            session.add(job)
        return job.id

    def pipeline(self, **fields: Any) -> Pipeline:
        defaults = {"settings": self.settings, "launcher": self.launcher, "seams": self.stand.seams(), "look": 0.02}
        return Pipeline(**{**defaults, **fields})

    def worker(self, **fields: Any) -> Worker:
        return Worker(database=self.database, pipeline=self.pipeline(**fields), idle=0.02)

    def read(self, job_id: str) -> Job:
        with self.database.reading() as session:
            found = session.get(Job, job_id)
            assert found is not None
            return found

    def said(self, job_id: str) -> list[str]:
        with self.database.reading() as session:
            events = session.query(Event).filter_by(job_id=job_id).order_by(Event.number).all()
            return [event.message for event in events]

    def checkpoints(self, job_id: str) -> list[int]:
        with self.database.reading() as session:
            kept = session.query(Checkpoint).filter_by(job_id=job_id).order_by(Checkpoint.step).all()
            return [each.step for each in kept]

    def models(self) -> dict[str, str]:
        with self.database.reading() as session:
            return {model.job_id: model.state for model in session.query(Model)}

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder(self.settings.job(job_id))

    def blob(self, file_id: str) -> bytes:
        with self.database.reading() as session:
            file = session.get(File, file_id)
            assert file is not None
            return self.stand.bytes_of(file.sha256).read_bytes()


def progress_of(folder: JobFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.progress.read_text(encoding="utf-8").splitlines()]
