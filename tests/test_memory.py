# SPDX-License-Identifier: Apache-2.0
"""Peak memory: of this process alone, and from a chosen moment on."""

import subprocess
import sys

import pytest

from moored.memory import forget_peak, peak_bytes

MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak can be forgotten on Linux only")


@linux
def test_a_peak_is_seen_and_forgotten():
    forget_peak()
    before = peak_bytes()
    block = b"x" * (200 * MIB)
    seen = peak_bytes()
    del block
    forget_peak()
    assert seen >= before + 190 * MIB
    assert peak_bytes() <= seen - 190 * MIB


@linux
def test_a_child_does_not_inherit_its_parents_peak():
    block = b"x" * (300 * MIB)
    program = "from moored.memory import peak_bytes; print(peak_bytes())"
    child = int(subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE).stdout)
    assert child < len(block)
