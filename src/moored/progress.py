# SPDX-License-Identifier: Apache-2.0
"""How long work says how far it is, and what it has found so far."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""

Found = Callable[[int, str], None]
"""Called with an answer as soon as it is there: the number of its prompt, from 0, and the text."""
