# SPDX-License-Identifier: Apache-2.0
"""Where a server keeps its things and how it listens. What it demands of jobs is its policy."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from moored.service.launchers.named import LauncherName


class ServerSettings(BaseModel):
    """Settings of one server; every process of it has the same.

    Args:
        home: the folder that holds everything, see `design/006-service.md`.
        database: URL of SQLAlchemy; "" is the one in $MOORED_DATABASE, where a password is not seen, or SQLite in the
            home.
        host: address to listen on.
        port: port to listen on.
        launcher: where training runs.
        launcher_options: what that place is asked for, by name; see `Options` of its module in `launchers`.
        slots: jobs that train at a time.
        engine: "local" answers from weights in this process; an http(s) address asks a vLLM server there.
        lease: how long a worker that is not heard of keeps its job [s].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path
    database: str = ""
    host: str = "127.0.0.1"
    port: int = Field(default=8400, ge=0, le=65535)
    launcher: LauncherName = "local"
    launcher_options: dict[str, str] = {}
    slots: int = Field(default=1, ge=1)
    engine: str = Field(default="local", pattern=r"^(local|https?://.+)$")
    lease: int = Field(default=60, ge=5)

    @property
    def database_url(self) -> str:
        """The database's URL, with the default filled in."""
        return self.database or os.environ.get("MOORED_DATABASE") or f"sqlite:///{self.home / 'moored.sqlite'}"

    @property
    def policy_file(self) -> Path:
        """The operator's policy."""
        return self.home / "policy.toml"

    @property
    def blobs(self) -> Path:
        """Files under the hash of their content."""
        return self.home / "blobs"

    @property
    def store(self) -> Path:
        """The study store: aligned starts, adapters, judged answers."""
        return self.home / "store"

    def job(self, job_id: str) -> Path:
        """The folder of a job."""
        return self.home / "jobs" / job_id

    def model(self, job_id: str) -> Path:
        """The folder of the model that a job made."""
        return self.home / "models" / job_id
