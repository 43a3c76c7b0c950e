# SPDX-License-Identifier: Apache-2.0
"""The only way from a model's name to its weights: first the database is asked, then the bytes.

Whatever is unclear is refused: a state other than "passed", another project's model, a folder that is missing, a file
that is not what it was when the gate passed it.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Row, bindparam, select

from moored.digest import identity_of
from moored.errors import MooredError
from moored.service.database import Database, Model, columns_of
from moored.service.fingerprints import Fingerprints, digest
from moored.service.identity import Caller
from moored.service.policy import Policy
from moored.service.problems import ApiProblem, missing_model
from moored.service.publishing import Decided, publish, start_path
from moored.service.settings import ServerSettings
from moored.service.starts import Starts
from moored.serving import Serving

__all__ = ["Decided", "Listed", "Refusal", "Registry", "Served", "digest", "publish"]

log = logging.getLogger("moored.service")

Kept = Model | Row[Any]
"""A model as the database has it."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A model as it is listed.

    Args:
        name: what clients call it.
        created: seconds since 1970.
        owner: a project, or "system".
    """

    name: str
    created: int
    owner: str


@dataclass(frozen=True, kw_only=True)
class Served:
    """Weights that may answer now.

    Args:
        name: what clients call the model.
        start: the folder or hub id of the weights under the adapter, and of the tokenizer.
        adapter: the folder of the adapter; None where `weights` are the model.
        weights: what is loaded first: `start`, or the folder of a model that was tuned or repaired as a whole.
        serving: what every request must carry.
        sha256: of all these bytes.
        base_sha256: of `weights`, so that models on the same ones share them in memory.
        confirm: raises `ApiProblem` if the bytes are not these any more; an engine calls it after it has read them.
    """

    name: str
    start: str
    adapter: Path | None
    weights: str
    serving: Serving | None
    sha256: str
    base_sha256: str
    confirm: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """For the audit log: bytes that are not those that passed.

    Args:
        model: its name.
        project_id: whose it is.
        expected: hash of what passed.
        found: hash of what is there, or in words why there is none.
    """

    model: str
    project_id: str
    expected: str
    found: str


class Registry:
    """Names and weights.

    Args:
        settings: where things are.
        database: what passed.
        policy: gives the policy as it is now.
        permits: whether what was decided lets a model that passed be served; a second word beside the database's.
        refused: called once for each change of a model's bytes: writes the audit log.
        unload: called with the name of a model that may answer no more.
    """

    def __init__(
        self,
        settings: ServerSettings,
        database: Database,
        policy: Callable[[], Policy],
        *,
        permits: Callable[[Kept], bool],
        refused: Callable[[Refusal], None] = lambda refusal: None,
        unload: Callable[[str], None] = lambda name: None,
    ):
        self._settings, self._database, self._policy = settings, database, policy
        self._permits, self._refused, self._unload = permits, refused, unload
        self._starts = Starts(settings.store)
        self._fingerprints = Fingerprints()
        self._told: dict[str, str] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Find the models of the policy, which takes seconds once: what the first request would wait for."""
        for name in self._policy().models:
            self._ready(name)

    def names(self, caller: Caller) -> list[Listed]:
        """All that a caller can chat with: the models of the policy that are ready, and its project's own that passed.

        Args:
            caller: who asks.
        """
        ready = [self._offered(name) for name in self._policy().models]
        with self._database.looking() as connection:
            own = connection.execute(_EVERY, {"project_id": caller.project_id}).all()
        tuned = [_listed(model) for model in own if self._permits(model) and self._changed(model) is None]
        return [listed for listed in ready if listed is not None] + tuned

    def find(self, name: str, caller: Caller) -> Listed:
        """A model as it is listed.

        Args:
            name: of any model.
            caller: who asks.

        Raises:
            ApiProblem: 404, also for models that did not pass, are not ready, or are somebody else's.
        """
        if name in self._policy().models:
            listed = self._offered(name)
            if listed is None:
                raise missing_model(name)
            return listed
        model = self._passed(name, caller)
        if self._changed(model) is not None:
            raise missing_model(name)
        return _listed(model)

    def open(self, name: str, caller: Caller) -> Served:
        """The weights of a model, for every single request anew.

        Args:
            name: of any model.
            caller: who asks.

        Raises:
            ApiProblem: 404 as in `find`; 503 if a start is not made yet, or the bytes are not those that passed.
        """
        if name in self._policy().models:
            return self._open_start(name)
        model = self._passed(name, caller)
        self._confirm(model)
        folder, start = self._folder(model), self._start(model)
        adapter = folder if (folder / "adapter_config.json").is_file() else None
        served = Served(
            name=model.id,
            start=start,
            adapter=adapter,
            weights=start if adapter else str(folder),
            serving=None,
            sha256=model.sha256,
            base_sha256=self._identity(start) if adapter else model.sha256,
            confirm=lambda: self._confirm(self._passed(name, caller)),
        )
        return self._with_serving(served)

    def delete(self, name: str, caller: Caller) -> None:
        """Take a tuned model away for good.

        Args:
            name: of one of the caller's project.
            caller: who asks.

        Raises:
            ApiProblem: 404 as in `find`; 403 for a model of the policy.
        """
        if name in self._policy().models:
            raise ApiProblem(403, f"The model `{name}` belongs to this server; only fine-tuned models can be deleted.")
        with self._database.writing() as session:
            mine = select(Model).where(*_OWN, Model.id == bindparam("name"))
            model = session.scalar(mine, _asked(name, caller))
            if model is None:
                raise missing_model(name)
            model.state = "deleted"
        self._unload(name)
        shutil.rmtree(self._settings.home / model.folder, ignore_errors=True)

    def _offered(self, name: str) -> Listed | None:
        """A model of the policy; None if it is not ready."""
        start = self._ready(name)
        if start is None:
            return None
        folder = Path(start)
        created = int(folder.stat().st_mtime) if folder.is_dir() else 0
        return Listed(name=name, created=created, owner="system")

    def _ready(self, name: str) -> str | None:
        try:
            return self._starts.find(self._policy(), name)
        except (MooredError, OSError) as error:
            log.warning("the model %s of the policy is not ready: %s", name, error)
            return None

    def _open_start(self, name: str) -> Served:
        start = self._ready(name)
        if start is None:
            raise ApiProblem(
                503,
                f"The model `{name}` is not ready: this server has not made (or cannot read) its aligned weights yet. "
                "They are made when the server has nothing else to do, or by the first fine-tuning job on it.",
                "model",
                "model_not_ready",
                headers={"x-should-retry": "false"},
            )
        try:
            sha256 = self._identity(start)
            served = Served(
                name=name,
                start=start,
                adapter=None,
                weights=start,
                serving=None,
                sha256=sha256,
                base_sha256=sha256,
                confirm=lambda: self._same(name, start, sha256),
            )
            return self._with_serving(served)
        except (MooredError, OSError) as error:
            log.error("the weights of %s cannot be read: %s", name, error)
            raise _unusable(name) from error

    def _identity(self, start: str) -> str:
        return identity_of(start, self._fingerprints.sha256)

    def _same(self, name: str, start: str, sha256: str) -> None:
        if self._identity(start) != sha256:
            self._unload(name)
            raise _unusable(name)

    def _with_serving(self, served: Served) -> Served:
        from moored.hf.loaders import load_serving

        try:
            serving = load_serving(served.weights, adapter=served.adapter)
        except (MooredError, OSError) as error:
            log.error("%s has no readable serving file: %s", served.name, error)
            raise _unusable(served.name) from error
        return replace(served, serving=serving)

    def _passed(self, name: str, caller: Caller) -> Kept:
        with self._database.looking() as connection:
            model = connection.execute(_ONE, _asked(name, caller)).one_or_none()
        if model is None or not self._permits(model):
            raise missing_model(name)
        return model

    def _confirm(self, model: Kept) -> None:
        found = self._changed(model)
        if found is not None:
            raise _unusable(model.id)

    def _changed(self, model: Kept) -> str | None:
        """What is there instead of the bytes that passed; None if they are there."""
        try:
            found = self._fingerprints.digest(self._folder(model), self._start(model))
        except (MooredError, OSError) as error:
            log.error("the weights of %s cannot be read: %s", model.id, error)
            found = f"cannot be read ({type(error).__name__})"
        if found == model.sha256:
            self._told.pop(model.id, None)
            return None
        with self._lock:
            new, self._told[model.id] = self._told.get(model.id) != found, found
        self._unload(model.id)
        if new:
            log.error("the weights of %s are not those that passed: %s, not %s", model.id, found, model.sha256)
            try:
                self._refused(Refusal(model=model.id, project_id=model.project_id, expected=model.sha256, found=found))
            except (MooredError, OSError) as error:  # refused it is all the same
                log.error("the audit log does not say so: %s", error)
        return found

    def _folder(self, model: Kept) -> Path:
        return self._settings.home / model.folder

    def _start(self, model: Kept) -> str:
        return start_path(self._settings, model.start)


_OWN = (Model.project_id == bindparam("project_id"), Model.state == "passed")
_EVERY = select(*columns_of(Model)).where(*_OWN).order_by(Model.created_at, Model.id)
_ONE = select(*columns_of(Model)).where(*_OWN, Model.id == bindparam("name"))


def _asked(name: str, caller: Caller) -> dict[str, str]:
    """For the model of this name that passed, in the caller's project."""
    return {"name": name, "project_id": caller.project_id}


def _listed(model: Kept) -> Listed:
    return Listed(name=model.id, created=model.created_at, owner=model.project_id)


def _unusable(name: str) -> ApiProblem:
    """503: weights that were there, and are not what they were."""
    return ApiProblem(
        503,
        f"The model `{name}` cannot answer: its weights on this server are missing or not those that passed the safety "
        "gate. Ask the operator to restore them.",
        "model",
        "model_unavailable",
        headers={"x-should-retry": "false"},
    )
