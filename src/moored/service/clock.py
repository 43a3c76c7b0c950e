# SPDX-License-Identifier: Apache-2.0
"""The time of day, from one place, so that a test can set it."""

from __future__ import annotations

import time


def now() -> int:
    """Whole seconds since 1970, UTC."""
    return int(time.time())
