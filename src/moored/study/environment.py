# SPDX-License-Identifier: Apache-2.0
"""Where and with what a study ran: commit, versions, machine. Nothing here names a host or a person."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import moored
from moored.report.record import Machine

PACKAGES = ("moored", "torch", "transformers", "peft", "trl", "datasets", "accelerate", "safetensors")


def commit() -> str:
    """The git commit of a checkout of moored, "+dirty" if files were changed; "" for an installed package."""
    package = Path(moored.__file__).resolve().parent
    git = shutil.which("git")
    if git is None or package.parent.name != "src" or not (package.parents[1] / ".git").exists():
        return ""

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        command = [git, "-C", str(package.parents[1]), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    head = ask("rev-parse", "HEAD")
    if head.returncode != 0:
        return ""
    dirty = ask("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return head.stdout.strip() + ("+dirty" if dirty else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(dtype: str = "") -> Machine:
    """This machine, without anything that names it."""
    import torch

    cuda = torch.cuda.is_available()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor(),
        cores=cores(),
        memory_bytes=memory_bytes(),
        device=f"cuda: {torch.cuda.get_device_name()}" if cuda else "cpu",
        dtype=dtype,
    )


def processor() -> str:
    """The model name of the CPU, "" where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 0)


def memory_bytes() -> int:
    """Physical memory, 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
