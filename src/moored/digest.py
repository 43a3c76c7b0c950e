# SPDX-License-Identifier: Apache-2.0
"""What identifies a file by its content."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(file: Path) -> str:
    """Hex digest of a file.

    Args:
        file: read in pieces, of any size.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
