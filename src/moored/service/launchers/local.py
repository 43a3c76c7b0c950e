# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine, at most one per slot."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from filelock import FileLock
from pydantic import Field

from moored.errors import ConfigError
from moored.service.folder import PROCESS, JobFolder
from moored.service.launchers.base import Ended, Handle, NoSlot
from moored.service.processes import Process
from moored.study.recipe import Part

_LOOK = 0.05


class Options(Part):
    """What of this machine is for jobs."""

    devices: str = Field(
        default="",
        pattern=r"^([\w-]+(,[\w-]+)*)?$",
        description="accelerators as CUDA_VISIBLE_DEVICES names them, for example 0,1: one for each slot; `` shows all",
    )
    nice: int = Field(default=10, ge=0, le=19, description="added to the niceness: answers come before training")


@dataclass(frozen=True, kw_only=True)
class LocalLauncher:
    """Starts processes in sessions of their own, so that they outlive whoever started them.

    Args:
        slots: processes at a time, on the whole machine.
        folder: which slot is whose; shared by all who launch here.
        devices: the accelerator of each slot, as `CUDA_VISIBLE_DEVICES` names it; () leaves that alone.
        nice: added to the niceness, 0-19: answers come before training.
    """

    slots: int
    folder: Path
    devices: Sequence[str] = ()
    nice: int = 10
    _own: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict, init=False, repr=False)

    def check(self) -> None:
        """See `Launcher.check`."""
        if self.devices and self.slots > len(self.devices):
            raise ConfigError(
                f"{self.slots} slots are more than the option `devices` names ({','.join(self.devices)}): a device is "
                "for one job at a time; give fewer --slots or more devices"
            )

    def start(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Handle:
        """See `Launcher.start`."""
        if (running := self.find(folder)) is not None:
            return running
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            slot = self._free()
            device = {"CUDA_VISIBLE_DEVICES": self.devices[slot % len(self.devices)]} if self.devices else {}
            started = self._start(command, folder, {**environment, **device})
            JobFolder(folder).write_json(PROCESS, started.plain())
            JobFolder(self.folder).write_json(f"{slot}.json", started.plain())
        return started.plain()

    def find(self, folder: Path) -> Handle | None:
        """See `Launcher.find`."""
        said = JobFolder(folder).read_json(PROCESS)
        return said if said is not None and "pid" in said and self.poll(said) is None else None

    def poll(self, handle: Handle) -> Ended | None:
        """See `Launcher.poll`."""
        process = Process.read(dict(handle))
        own = self._own.get(process.pid)
        if own is not None and (code := own.poll()) is not None:
            return Ended(code=code)
        return None if process.alive else Ended(code=None)

    def stop(self, handle: Handle, *, grace: float) -> None:
        """See `Launcher.stop`."""
        process = Process.read(dict(handle))
        until = time.monotonic() + grace
        if grace:
            process.signal(signal.SIGTERM)
        while self.poll(handle) is None:
            if time.monotonic() >= until:
                process.signal(signal.SIGKILL)
            time.sleep(_LOOK)

    def _free(self) -> int:
        for slot in range(self.slots):
            try:
                said = json.loads((self.folder / f"{slot}.json").read_text(encoding="utf-8"))
            except FileNotFoundError:
                return slot
            if self.poll(said) is not None:
                return slot
        raise NoSlot(f"all {self.slots} slots are taken")

    def _start(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Process:
        with JobFolder(folder).log.open("ab") as log:
            own = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._own[own.pid] = own
        started = Process.of(own.pid)
        assert started is not None  # it is at least a zombie until it is asked after
        psutil.Process(own.pid).nice(self.nice)
        return started


def launcher(options: Options, *, slots: int, folder: Path) -> LocalLauncher:
    """A launcher whose slots all processes of this machine share that know the folder."""
    devices = tuple(filter(None, options.devices.split(",")))
    return LocalLauncher(slots=slots, folder=folder, devices=devices, nice=options.nice)
