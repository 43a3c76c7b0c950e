# SPDX-License-Identifier: Apache-2.0
"""Names of things that nobody can guess."""

from __future__ import annotations

import secrets
import string

_LETTERS = string.ascii_letters + string.digits
_LENGTH = 24


def new_id(kind: str) -> str:
    """A new name: the kind, a hyphen and 24 letters or digits (143 bits of chance).

    Args:
        kind: what the client expects in front: "file", "ftjob", "ftevent", "ftckpt", "upload", "part", "chatcmpl".
    """
    return f"{kind}-{''.join(secrets.choice(_LETTERS) for _ in range(_LENGTH))}"
