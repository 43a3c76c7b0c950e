# SPDX-License-Identifier: Apache-2.0
"""Peak resident memory of this process, from a moment of one's choice where the system allows it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Let `peak_bytes` count from now on; on systems other than Linux the peak stays that of the whole process."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Largest resident set since `forget_peak`, in bytes, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
