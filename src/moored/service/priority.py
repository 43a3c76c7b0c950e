# SPDX-License-Identifier: Apache-2.0
"""Who goes first where there are too few processors."""

from __future__ import annotations

import contextlib
import os
import threading

_BEHIND = 5


def behind_requests() -> None:
    """Let this thread wait for those that answer short requests, where the system can tell threads apart (Linux)."""
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BEHIND)
