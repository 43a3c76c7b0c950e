# SPDX-License-Identifier: Apache-2.0
"""A folder of weights, copied whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from moored.errors import CheckpointError
from moored.service.ids import new_id

KEPT = (".safetensors", ".json", ".txt", ".jinja", ".md")
"""What may stand in the folder of a served model: data, and nothing that a loader would run."""


def put_in_place(source: Path, folder: Path, texts: Mapping[str, str]) -> Path:
    """Copy a folder under a temporary name, make it durable, and rename it into place over what is there.

    Args:
        source: plain files, no folders.
        folder: where it goes.
        texts: further files, by name; they go before those of `source`.

    Raises:
        CheckpointError: something in it may not be served, or there is nothing.
        OSError: the disk is full, or a file cannot be read.
    """
    files = [path for path in sorted(source.iterdir()) if path.name not in texts]
    for path in (*files, *(Path(name) for name in texts)):
        if path.suffix not in KEPT or path.name != str(path.relative_to(path.parent)):
            raise CheckpointError(f"{path.name} cannot be served: only {', '.join(KEPT)} files are")
    for path in files:
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path.name} cannot be served: it is no plain file")
    if not any(path.suffix == ".safetensors" for path in files):
        raise CheckpointError(f"{source} holds no safetensors file; there is nothing to serve")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(new_id(f".{folder.name}"))
    try:
        work.mkdir(mode=0o700)
        for path in files:
            shutil.copyfile(path, work / path.name)
        for name, text in texts.items():
            (work / name).write_text(text, encoding="utf-8")
        for path in work.iterdir():
            path.chmod(0o600)
            _sync(path)
        _sync(work)
        if folder.exists():  # of an attempt that died; no row promises it, or the caller makes a new one
            shutil.rmtree(folder)
        work.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _sync(path: Path) -> None:
    """Through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
