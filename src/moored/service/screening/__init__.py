# SPDX-License-Identifier: Apache-2.0
"""What is in an upload, row by row, and what the operator's policy does about it. One file per detector."""

from __future__ import annotations

from moored.service.screening.base import Detector, Finding
from moored.service.screening.screening import Screening, screen

__all__ = ["Detector", "Finding", "Screening", "screen"]
