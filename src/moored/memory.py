# SPDX-License-Identifier: Apache-2.0
"""Peak resident memory of this process, from a moment of one's choice where the system allows it."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def forget_peak() -> None:
    """Let `peak_bytes` count from now on; on systems other than Linux the peak stays that of the whole process."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Largest resident set since `forget_peak`, in bytes, mapped files included."""
    # getrusage would also count what the parent process held when it started this one.
    if _STATUS.is_file() and (found := _PEAK.search(_STATUS.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
