# SPDX-License-Identifier: Apache-2.0
"""Slurm: one batch job runs one command.

Written with `sbatch`, `squeue` and `scancel` and not with submitit: that one hands over even a plain command as a
pickle in the job's folder, and unpickles what lies there on the node and on the way back.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, field_validator

from moored.errors import ConfigError
from moored.service.folder import PROCESS, JobFolder
from moored.service.launchers.base import STOPPED, UNSEEN, Away, Ended, Handle
from moored.service.launchers.elsewhere import SEES, identity, one_device, prologue, spelt
from moored.study.recipe import Part

PROGRAMS = ("sbatch", "squeue", "scancel")
"""Slurm's, which must be there where the server runs."""

_KEY = "slurm"
_SCRIPT = "slurm.sh"
_STATUS = "slurm.status"
_LOOK = 0.5
_TIMEOUT = 60
_SIGNALLED = 128
_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}


class Options(Part):
    """What Slurm is to be asked for."""

    partition: str = Field(default="", pattern=r"^\S*$", description="of the job; Slurm's default if empty")
    account: str = Field(default="", pattern=r"^\S*$", description="that pays; Slurm's default if empty")
    qos: str = Field(default="", pattern=r"^\S*$", description="quality of service; Slurm's default if empty")
    time: str = Field(default="", pattern=r"^[\d:-]*$", description="limit, as `sbatch --time`; a job goes on after it")
    cpus: int = Field(default=1, ge=1, description="of a job")
    gpus: int = Field(default=0, ge=0, description="of a job: 0 or 1")
    memory: str = Field(default="", pattern=r"^(\d+[KMGT]?)?$", description="of a job, as `sbatch --mem`")
    python: str = Field(default="", description="interpreter on the nodes, if it has another path there")
    name: str = Field(
        default="moored", pattern=r"^[A-Za-z0-9_-]+$", description="what the names of its jobs begin with"
    )
    grace: int = Field(default=120, ge=0, description="how long before its limit a job is asked to stop [s]")
    look: float = Field(default=5.0, ge=0, description="least time between two questions after one job [s]")
    sees: int = Field(default=SEES, ge=0, description="how long a node may take to see a new file [s]")

    @field_validator("gpus")
    @classmethod
    def _one(cls, gpus: int) -> int:
        return int(one_device(gpus))


@dataclass(frozen=True, kw_only=True)
class SlurmLauncher:
    """Runs commands as batch jobs. Slurm queues them, so there are no slots to run out of.

    All jobs of a folder have one name and are singletons: Slurm itself never runs two of them at a time, whoever asked
    for them. The script writes the exit status beside the log, so that no accounting is needed to know it.

    Args:
        options: what to ask for.
    """

    options: Options
    _seen: dict[str, tuple[float, str]] = field(default_factory=dict, init=False, repr=False)

    def check(self) -> None:
        """See `Launcher.check`."""
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            raise ConfigError(
                f"the launcher 'slurm' needs {', '.join(missing)} on the PATH: run where one submits to the cluster"
            )
        try:
            self._ask("squeue", "--noheader", "--name", self.options.name)
        except Away as error:
            raise ConfigError(f"Slurm does not answer; see `sinfo` ({error})") from error

    def start(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Handle:
        """See `Launcher.start`."""
        if (running := self.find(folder)) is not None:
            return running
        kept, handle = JobFolder(folder), self._handle(folder)
        kept.forget(_STATUS)
        kept.write_json(PROCESS, handle)
        script = kept.write(_SCRIPT, self._script(handle["name"], command, folder, environment))
        said = self._ask("sbatch", *self._wanted(handle["name"], folder), str(script), environment=environment)
        handle[_KEY] = said.strip().partition(";")[0]
        kept.write_json(PROCESS, handle)
        return handle

    def find(self, folder: Path) -> Handle | None:
        """See `Launcher.find`."""
        said = JobFolder(folder).read_json(PROCESS)
        if said is None or _KEY not in said:
            return None
        if not said[_KEY]:  # whoever asked for it was killed before it heard the number
            numbers = self._ask("squeue", "--noheader", "--format=%i", f"--name={said['name']}").split()
            if not numbers:
                return None
            said[_KEY] = numbers[0]
            JobFolder(folder).write_json(PROCESS, said)
        return None if self._state(said[_KEY]) in _OVER else said

    def poll(self, handle: Handle) -> Ended | None:
        """See `Launcher.poll`."""
        state = self._state(handle[_KEY])
        return _ended(Path(handle["folder"]), handle[_KEY], state) if state in _OVER else None

    def stop(self, handle: Handle, *, grace: float) -> None:
        """See `Launcher.stop`."""
        number, until = handle[_KEY], time.monotonic() + grace
        if grace and self._state(number, patient=False) == "RUNNING":
            self._ask("scancel", "--batch", "--signal=TERM", number)
        cancelled = False
        while self._state(number, patient=False) not in _OVER:
            if not cancelled and (time.monotonic() >= until or self._state(number) == "PENDING"):
                self._ask("scancel", number)
                cancelled = True
            time.sleep(_LOOK)

    def _handle(self, folder: Path) -> dict[str, str]:
        return {_KEY: "", "name": identity(folder, self.options.name), "folder": str(folder.resolve())}

    def _wanted(self, name: str, folder: Path) -> list[str]:
        """What `sbatch` is told; all of it by its arguments, where nothing in a path is taken for anything else."""
        asked = self.options
        words = {
            "job-name": name,
            "dependency": "singleton",
            "output": str(JobFolder(folder).log.resolve()).replace("%", "%%"),
            "open-mode": "append",
            "cpus-per-task": asked.cpus,
            "gpus": asked.gpus,
            "mem": asked.memory,
            "time": asked.time,
            "partition": asked.partition,
            "account": asked.account,
            "qos": asked.qos,
            "signal": f"B:TERM@{asked.grace}" if asked.time and asked.grace else "",
        }
        return ["--parsable", "--no-requeue", *(f"--{key}={value}" for key, value in words.items() if value)]

    def _script(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
        devices, python = self.options.gpus > 0, self.options.python
        words = spelt(command, environment, launcher=_KEY, python=python, devices=devices)
        before = prologue(folder, name, program=python or command[0], sees=self.options.sees)
        status = shlex.quote(str((folder / _STATUS).resolve()))
        return f"""\
#!/bin/sh
file={status}
trap 'echo "$SLURM_JOB_ID $?" > "$file.part" && mv "$file.part" "$file"' EXIT
{before}{words} &
child=$!
trap 'kill -TERM "$child"' TERM
while :; do  # a signal ends a `wait`, and not the child
  wait "$child"; status=$?
  [ "$status" -gt {_SIGNALLED} ] && kill -0 "$child" 2>/dev/null || break
done
exit "$status"
"""

    def _state(self, number: str, *, patient: bool = True) -> str:
        """Slurm's word for the state of a job.

        Args:
            number: of the job.
            patient: whether an answer of a moment ago will do.

        Raises:
            Away: Slurm cannot be asked.
        """
        when, state = self._seen.get(number, (-1.0, ""))
        if not state or (state not in _OVER and (not patient or time.monotonic() - when >= self.options.look)):
            state = self._asked(number)
            self._seen[number] = time.monotonic(), state
        return state

    def _asked(self, number: str) -> str:
        try:
            said = self._ask("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}").split()
        except Away as error:
            if "Invalid job id" in str(error):
                return "COMPLETED"  # so long ago that Slurm has forgotten it
            raise
        return said[0] if said else "COMPLETED"

    def _ask(self, program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """What a program of Slurm's prints.

        Raises:
            Away: it failed.
        """
        try:
            done = subprocess.run(
                [program, *arguments], env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise Away(f"{program} failed: {said.strip()}") from error
        return done.stdout


def _ended(folder: Path, number: str, state: str) -> Ended:
    """How a job ended, as its script has said; if that could say nothing, as Slurm does."""
    try:
        said = (folder / _STATUS).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        said = []
    if said[:1] != [number]:
        unseen = f"Slurm's job {number} could not write to {folder}: its node does not see that folder"
        return Ended(code=-signal.SIGKILL if state == "OUT_OF_MEMORY" else None, why=unseen * (state == "FAILED"))
    code = int(said[1])
    if code == UNSEEN:
        last = JobFolder(folder).log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        return Ended(code=code, why=last)
    return Ended(code=_SIGNALLED - code if code > _SIGNALLED and code != STOPPED else code)


def launcher(options: Options, *, slots: int, folder: Path) -> SlurmLauncher:
    """A launcher; Slurm counts for itself what runs at a time."""
    return SlurmLauncher(options=options)
