# SPDX-License-Identifier: Apache-2.0
"""What a command needs on a machine that is not this one, as a few lines of shell that go before it."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from moored.errors import ConfigError
from moored.service.folder import PROCESS
from moored.service.launchers.base import LAUNCHER, UNSEEN

SEES = 60
"""How long another machine may take to see a file that was just written [s]; file systems keep names for so long."""

ONE_DEVICE = (
    "one job trains on one device in this version: a stage of a study is known by its batch, and every further process "
    "would train on a batch of its own"
)

_CARRIED = re.compile(
    r"^(HF_(HOME|HUB_CACHE|HUB_OFFLINE|DATASETS_\w+)|HUGGINGFACE_HUB_CACHE|TRANSFORMERS_\w+|TOKENIZERS_PARALLELISM"
    r"|OMP_NUM_THREADS|MKL_NUM_THREADS|PYTHONPATH|PYTHONHASHSEED|PYTORCH_\w+|CUBLAS_WORKSPACE_CONFIG|NLTK_DATA|LANG"
    r"|LC_ALL)$"
)


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment holds on another machine too.

    Who may look at a cluster sees how its jobs were started, so nothing goes along that could be a token, and nothing
    that says where this machine has its programs and devices.

    Args:
        environment: of this machine.
    """
    return {name: value for name, value in environment.items() if _CARRIED.match(name)}


def identity(folder: Path, prefix: str = "moored") -> str:
    """The name of what runs in a folder: always the same, and no other folder's.

    Args:
        folder: of the job.
        prefix: what all names begin with.
    """
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return f"{prefix}-{re.sub(r'[^A-Za-z0-9_-]+', '-', folder.name)[:64]}-{place}"


def prologue(folder: Path, token: str, *, program: str, sees: int) -> str:
    """Shell that ends with `UNSEEN` and a reason where the folder, or the program, is not there.

    A folder of the same name is not enough: what was just written into it must be there.

    Args:
        folder: of the job.
        token: stands in its `process.json`.
        program: that is to run.
        sees: how long to look for the token [s].
    """
    where, here = shlex.quote(str(folder.resolve())), shlex.quote(os.getcwd())
    said = shlex.quote(f"does not see {folder.resolve()} as it is where the server runs")
    missing = shlex.quote(f"has no {program}; name its interpreter by the option `python`")
    return f"""\
unseen() {{ echo "$(hostname) $1" >&2; exit {UNSEEN}; }}
looks={sees}
until grep -qs -e {shlex.quote(token)} {where}/{PROCESS}; do
  [ "$looks" -gt 0 ] || unseen {said}
  looks=$((looks - 1)); sleep 1
done
cd {here} || unseen {shlex.quote(f"does not see {os.getcwd()}, where the server works")}
command -v {shlex.quote(program)} >/dev/null || unseen {missing}
"""


def spelt(command: Sequence[str], environment: Mapping[str, str], *, launcher: str, python: str, devices: bool) -> str:
    """A command with its environment, for a shell.

    Args:
        command: program and arguments.
        environment: of this machine.
        launcher: who finds the process again.
        python: what takes the place of this machine's interpreter; "" leaves it.
        devices: whether it was given any; else it sees none, for those that are there are somebody else's.
    """
    words = {**carried(environment), LAUNCHER: launcher, **({} if devices else {"CUDA_VISIBLE_DEVICES": ""})}
    own = [python, *command[1:]] if python else list(command)
    return shlex.join(["env", *(f"{name}={value}" for name, value in sorted(words.items())), *own])


def one_device(gpus: float | int) -> float:
    """The devices of a job.

    Raises:
        ConfigError: more than one.
    """
    if gpus > 1:
        raise ConfigError(f"`gpus` must be at most 1; got {gpus:g}: {ONE_DEVICE}")
    return float(gpus)
