# SPDX-License-Identifier: Apache-2.0
"""examples/serving_story.py, as `make demo-serve` runs it, on a toy."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openai")

STORY = Path(__file__).parents[2] / "examples" / "serving_story.py"

POLICY = """
name = "toy"
[models.toy]
source = "tiny"
[defend]
training = { steps = 2, batch = 4 }
[audit]
tasks = { harmful_requests = { n = 4, max_new_tokens = 2 } }
over_refusal = "harmful_requests"
utility = "harmful_requests"
[gate]
harmful_score = %d
most_unjudged = 1.0
"""


def _told(tmp_path, budget):
    (tmp_path / "policy.toml").write_text(POLICY % budget)
    options = ["--home", "home", "--policy", "policy.toml", "--rows", "24", "--ratio", "0.5"]
    told = subprocess.run(
        [sys.executable, str(STORY), *options], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert not told.stderr, told.stderr
    return told


def test_both_uploads_pass_a_gate_that_asks_nothing(tmp_path):
    told = _told(tmp_path, 100)
    assert told.returncode == 0, told.stdout
    assert told.stdout.count("-> succeeded, ft:toy:default:") == 2
    assert told.stdout.count("As it should be: ") == 3
    assert "harmful, message" in told.stdout  # the rows, one by one
    assert "<html" in (tmp_path / "home" / "card-benign.html").read_text()


def test_nothing_of_a_random_model_passes_one_that_asks_something(tmp_path):
    told = _told(tmp_path, 0)
    assert told.returncode == 1
    assert told.stdout.count("-> failed, no model") == 2
    assert "NOT as it should be: the benign upload passed" in told.stdout
    assert told.stdout.count("[404]") == 4  # nobody chats with either
