# SPDX-License-Identifier: Apache-2.0
"""One process serves a home: what keys ask is counted in it."""

import subprocess
import sys

import pytest

from moored.service.alone import alone

HOLD = """
import sys, time
from pathlib import Path
from moored.service.alone import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that serves a home."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_server_of_a_home_does_not_start(tmp_path, other):
    words = ["serve", "--home", str(tmp_path), "--port", "0"]
    second = subprocess.run([sys.executable, "-m", "moored", *words], capture_output=True, text=True, timeout=300)
    assert second.returncode != 0
    assert "another process serves" in second.stderr
    assert "sk-moored-" not in second.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["serving.lock"]  # nothing was made, no key was given


def test_a_killed_server_leaves_its_home_free(tmp_path, other):
    other.kill()
    other.wait()
    for _ in range(2):
        with alone(tmp_path):
            pass
