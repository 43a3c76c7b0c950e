# SPDX-License-Identifier: Apache-2.0
"""What is on the disk when a call returns, and never half of it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk.

    Args:
        path: of either.

    Raises:
        OSError: the disk is full, or there is no such thing.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole, over one that is there, or not at all.

    Args:
        path: in a folder that exists.
        text: what it is to hold.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        part.write_text(text, encoding="utf-8")
        sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
