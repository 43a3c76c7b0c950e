# SPDX-License-Identifier: Apache-2.0
"""The models that fine-tuning starts from: those of the policy, aligned by the provider where it says so."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moored.errors import MooredError, StudyError
from moored.service.policy import Policy
from moored.service.problems import missing_model

if TYPE_CHECKING:
    from moored.study.stages import AlignStage
    from moored.study.store import Store

SEED = 0
"""Of the provider's alignment and data, whatever seed a job has: they are made once and shared."""


def start_recipe(policy: Policy, name: str) -> dict[str, Any]:
    """The recipe that makes (and measures) a start: a study without fine-tuning.

    Args:
        policy: what is on offer.
        name: of a model in it.

    Raises:
        ApiProblem: 404, no such model.
    """
    offered = policy.models.get(name)
    if offered is None:
        raise missing_model(name)
    tree: dict[str, Any] = {"name": "start", "seed": SEED, "model": offered.source, "tasks": policy.audit.tasks}
    if offered.align is not None:
        tree["align"] = offered.align.model_dump(mode="json")
    return tree


def start_of(policy: Policy, name: str, store: Store) -> str | None:
    """The folder or hub id of a start; None while the provider's alignment is not done yet.

    Args:
        policy: what is on offer.
        name: of a model in it.
        store: where finished stages are.

    Raises:
        ApiProblem: 404, no such model.
        MooredError: the model or its data cannot be found.
    """
    return _there(_source_of(policy, name, store), store)


_PATIENCE_S = 10.0
"""What cannot be planned is not tried again so soon."""
_NEWS_S = 1.0
"""What is not made yet is not looked for again so soon."""

Version = tuple[str, str]


class Starts:
    """`start_of`, remembered by the version of the policy: a plan reads all data and hashes the source's weights.

    Args:
        root: of the store.
    """

    def __init__(self, root: Path):
        self._root = root
        self._known: dict[Version, str | AlignStage] = {}
        self._made: dict[Version, str] = {}
        self._failed: dict[Version, tuple[float, MooredError]] = {}
        self._missed: dict[Version, float] = {}
        self._seen: tuple[Policy | None, str] = None, ""
        self._lock = threading.Lock()

    def find(self, policy: Policy, name: str) -> str | None:
        """See `start_of`. What was made stays as it is, so that only its being there is looked at again."""
        version = (self._sha256(policy), name)
        made = self._made.get(version)
        if made is not None and (made == self._known[version] or Path(made).is_dir()):
            return made
        with self._lock:
            missed = self._missed.get(version)
            if missed is not None and time.monotonic() - missed < _NEWS_S:
                return None
            failed = self._failed.get(version)
            if failed is not None and time.monotonic() - failed[0] < _PATIENCE_S:
                raise failed[1]
            return self._looked_up(version, policy, name)

    def _sha256(self, policy: Policy) -> str:
        """The version of the policy, which is the same object until it is another policy."""
        seen, sha256 = self._seen
        if seen is not policy:
            sha256 = policy.sha256
            self._seen = policy, sha256
        return sha256

    def _looked_up(self, version: Version, policy: Policy, name: str) -> str | None:
        from moored.study.store import Store

        store = Store(self._root)  # one is of one thread, and opening it takes a while
        try:
            source = self._source(version, policy, name, store)
            found = _there(source, store)
        finally:
            store.close()
        if found is None:
            self._missed[version] = time.monotonic()
        else:
            self._made[version] = found
        return found

    def _source(self, version: Version, policy: Policy, name: str, store: Store) -> str | AlignStage:
        if version in self._known:
            return self._known[version]
        try:
            self._known[version] = _source_of(policy, name, store)
        except MooredError as error:
            self._failed[version] = time.monotonic(), error
            raise
        return self._known[version]


def _source_of(policy: Policy, name: str, store: Store) -> str | AlignStage:
    """The model itself, or the stage that makes it."""
    from moored.hf.loaders import resolve_model
    from moored.study.plan import plan
    from moored.study.recipe import Recipe
    from moored.study.stages import AlignStage

    tree = start_recipe(policy, name)
    if "align" not in tree:
        return resolve_model(tree["model"])
    for stage in plan(Recipe.parse(tree, what=f"the start of {name}"), store.sha256).stages:
        if isinstance(stage, AlignStage):
            return stage
    raise StudyError(f"the plan of {name} aligns nothing")


def _there(source: str | AlignStage, store: Store) -> str | None:
    if isinstance(source, str):
        return source
    from moored.study.stages import MODEL

    done = store.find(source)
    return None if done is None else str(done.folder / MODEL)
