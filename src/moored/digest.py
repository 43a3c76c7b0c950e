# SPDX-License-Identifier: Apache-2.0
"""What identifies a file, and a model, by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja")
"""Files that decide what a model folder answers."""

Sha256 = Callable[[Path], str]


def sha256_of(file: Path) -> str:
    """Hex digest of a file.

    Args:
        file: read in pieces, of any size.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def identity_of(model: str, sha256: Sha256 = sha256_of) -> str:
    """What stands for a model: the hash of what its folder holds; a hub id stands for itself.

    Args:
        model: a folder, or a hub id.
        sha256: hashes a file; a store remembers them.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = [(path.name, path) for path in sorted(folder.iterdir()) if path.suffix in MODEL_FILES]
    templates = sorted(folder.glob("additional_chat_templates/*.jinja"))  # transformers reads these too
    files += [(f"additional_chat_templates/{path.name}", path) for path in templates]
    listing = "".join(f"{name} {sha256(path)}\n" for name, path in files)
    return hashlib.sha256(listing.encode()).hexdigest()
