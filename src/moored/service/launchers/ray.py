# SPDX-License-Identifier: Apache-2.0
"""Ray Jobs: one job of a Ray cluster runs one command, and Ray says where.

The cluster is spoken to by its documented REST interface and not by its Python client: that one needs `ray[default]`
(80 MB, and of the cluster's very version) where the server runs, this one nothing that the server does not have. And
only plain JSON goes either way.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field, field_validator

from moored.errors import ConfigError
from moored.service.folder import PROCESS, JobFolder
from moored.service.launchers.base import UNSEEN, Away, Ended, Handle, NoSlot
from moored.service.launchers.elsewhere import SEES, identity, one_device, prologue, spelt
from moored.study.recipe import Part

TOKEN = "RAY_AUTH_TOKEN"
"""Environment variable of the cluster's token, as Ray's own programs read it."""

_KEY = "ray"
_LOOK = 0.5
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_RUNS = ("PENDING", "RUNNING")
_NO_ROOM = ("JOB_SUPERVISOR_ACTOR_START_TIMEOUT", "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE")
_NEVER_BEGAN = (
    "RUNTIME_ENV_SETUP_FAILURE",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE",
    "JOB_ENTRYPOINT_COMMAND_START_ERROR",
)
_UNKNOWN = 404


def _address() -> str:
    return os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"


class Options(Part):
    """What a Ray cluster is to be asked for."""

    address: str = Field(
        default_factory=_address, pattern=r"^https?://", description="of its dashboard [$RAY_API_SERVER_ADDRESS]"
    )
    cpus: float = Field(default=1.0, ge=0, description="that a job reserves")
    gpus: float = Field(default=0.0, ge=0, description="that a job reserves: 0, 1 or a part of one")
    memory: int = Field(default=0, ge=0, description="that a job reserves [bytes]; 0 reserves none")
    python: str = Field(default="", description="interpreter on the nodes, if it has another path there")
    name: str = Field(
        default="moored", pattern=r"^[A-Za-z0-9_-]+$", description="what the names of its jobs begin with"
    )
    grace: int = Field(default=120, ge=0, description="how long a job has to stop before Ray kills it [s]")
    sees: int = Field(default=SEES, ge=0, description="how long a node may take to see a new file [s]")

    @field_validator("gpus")
    @classmethod
    def _one(cls, gpus: float) -> float:
        return one_device(gpus)


@dataclass(frozen=True, kw_only=True)
class RayLauncher:
    """Runs commands as Ray jobs. Ray queues them, so there are no slots to run out of.

    A job's name is made of its folder and the number of the attempt, and stands in `process.json` before Ray hears of
    it: whoever comes after a worker that was killed asks for the same name, and Ray gives a name to one job only.

    Args:
        options: where the cluster is, and what to ask it for.
    """

    options: Options
    _client: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        token = os.environ.get(TOKEN)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.Client(base_url=self.options.address, headers=headers, timeout=_TIMEOUT, trust_env=False)
        object.__setattr__(self, "_client", client)

    def close(self) -> None:
        """Close the connections; the launcher is not used afterwards."""
        self._client.close()

    def check(self) -> None:
        """See `Launcher.check`."""
        try:
            answer = self._client.get("/api/version")
        except httpx.HTTPError as error:
            raise ConfigError(
                f"no Ray cluster answers at {self.options.address} ({error}); start one (`ray start --head`, with "
                "ray[default]) or name its dashboard by --launcher-option address=http://HOST:8265"
            ) from error
        if answer.status_code in (401, 403):
            raise ConfigError(f"the Ray cluster at {self.options.address} wants a token: put it into ${TOKEN}")
        if answer.status_code != httpx.codes.OK or "ray_version" not in answer.text:
            raise ConfigError(
                f"what answers at {self.options.address} is no Ray dashboard (status {answer.status_code}); name it by "
                "--launcher-option address=http://HOST:8265"
            )

    def start(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Handle:
        """See `Launcher.start`."""
        if (running := self.find(folder)) is not None:
            return running
        name = self._next(folder)
        handle = {_KEY: name}
        JobFolder(folder).write_json(PROCESS, handle)
        asked = self._post("/api/jobs/", self._request(name, command, folder, environment))
        if asked.is_error and self._job(name) is None:  # a name that is taken was ours, by a request that we forgot
            raise Away(f"Ray did not take the job {name}: {asked.text[-500:].strip()}")
        return handle

    def find(self, folder: Path) -> Handle | None:
        """See `Launcher.find`."""
        said = JobFolder(folder).read_json(PROCESS)
        job = self._job(str(said[_KEY])) if said is not None and _KEY in said else None
        return said if job is not None and job["status"] in _RUNS else None

    def poll(self, handle: Handle) -> Ended | None:
        """See `Launcher.poll`."""
        job = self._job(handle[_KEY])
        if job is None:
            return Ended(code=None)  # the cluster was started anew, and has ended what ran on it
        if job["status"] in _RUNS:
            return None
        if job.get("error_type") in _NO_ROOM:
            raise NoSlot(f"Ray found no room for {handle[_KEY]}: {job['message']}")
        code = job.get("driver_exit_code")
        if code == UNSEEN:
            return Ended(code=code, why=self._last_words(handle[_KEY]))
        began = job.get("error_type") not in _NEVER_BEGAN
        return Ended(code=code, why="" if began else str(job["message"]).strip().rpartition("\n")[2])

    def stop(self, handle: Handle, *, grace: float) -> None:
        """See `Launcher.stop`. The grace is that of the options: Ray is told it when a job starts, and no other."""
        name = handle[_KEY]
        self._post(f"/api/jobs/{name}/stop", {})
        while (job := self._job(name)) is not None and job["status"] == "RUNNING":
            time.sleep(_LOOK)
        # One that waits for room hears of it as soon as it has some; nothing is gained by waiting for that.

    def _next(self, folder: Path) -> str:
        """The name of the next attempt."""
        own = identity(folder, self.options.name)
        said = str((JobFolder(folder).read_json(PROCESS) or {}).get(_KEY, ""))
        if not said.startswith(f"{own}-"):
            return f"{own}-1"
        # A name that Ray does not know may be on its way there: to take the next one could run the job twice.
        return said if self._job(said) is None else f"{own}-{int(said.rpartition('-')[2]) + 1}"

    def _request(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> dict[str, Any]:
        devices, python = self.options.gpus > 0, self.options.python
        words = spelt(command, environment, launcher=_KEY, python=python, devices=devices)
        printed = shlex.quote(str(JobFolder(folder).log.resolve()))
        before = prologue(folder, name, program=python or command[0], sees=self.options.sees)
        return {
            "submission_id": name,
            "entrypoint": f"{before}exec {words} >> {printed} 2>&1",
            "runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(self.options.grace)}},
            "entrypoint_num_cpus": self.options.cpus,
            "entrypoint_num_gpus": self.options.gpus,
            **({"entrypoint_memory": self.options.memory} if self.options.memory else {}),
            "metadata": {"folder": str(folder.resolve())},
        }

    def _job(self, name: str) -> dict[str, Any] | None:
        """What Ray knows of a job; None if nothing.

        Raises:
            Away: it cannot be asked.
        """
        try:
            answer = self._client.get(f"/api/jobs/{name}")
            if answer.status_code == _UNKNOWN:
                return None
            answer.raise_for_status()
            return dict(answer.json())
        except (httpx.HTTPError, ValueError) as error:
            raise Away(f"the Ray cluster at {self.options.address} does not answer: {error}") from error

    def _last_words(self, name: str) -> str:
        """What a command said that could not begin; Ray's message on the job may be older than that."""
        try:
            said = str(self._client.get(f"/api/jobs/{name}/logs").raise_for_status().json()["logs"])
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise Away(f"the Ray cluster at {self.options.address} does not show what {name} said: {error}") from error
        return said.strip().rpartition("\n")[2] or "the node could not begin it, and did not say why"

    def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        try:
            return self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise Away(f"the Ray cluster at {self.options.address} does not answer: {error}") from error


def launcher(options: Options, *, slots: int, folder: Path) -> RayLauncher:
    """A launcher; Ray counts for itself what runs at a time."""
    return RayLauncher(options=options)
