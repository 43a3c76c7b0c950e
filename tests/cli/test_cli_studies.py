# SPDX-License-Identifier: Apache-2.0
"""`moored run` for real, in processes of its own: a tiny random model through every stage, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from moored.report.record import Record
from moored.study.recipe import Recipe
from moored.study.store import Store
from moored.study.study import Study

RECIPE: dict[str, Any] = {
    "name": "real",
    "model": "tiny",
    "align": {
        "data": [{"data": "synthetic:alignment", "limit": 6}],
        "training": {"steps": 2, "batch": 2, "max_length": 192},
        "defenses": ["vaccine"],
    },
    "attack": {"harmful_mix": {"n": 40, "ratio": 0.25}, "benign": "synthetic:utility", "harmful": "synthetic:harmful"},
    "finetune": {
        "training": {"epochs": 1, "batch": 2, "save_every": 1, "dtype": "float32"},
        "defenses": ["lisa"],
        "roles": {"alignment": "synthetic:alignment"},
        "probe": {"data": "synthetic:alignment", "limit": 2},
    },
    "repairs": ["safe_lora"],
    "tasks": {"harmful_requests": {"n": 6, "max_new_tokens": 2}, "utility": {"n": 4, "max_new_tokens": 2}},
    "arms": {"both": {"title": "All three"}},
}


def command(recipe: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "moored", "run", str(recipe), "--store", str(folder / "store"), "--out", str(folder)]


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for the processes of this module; each test's own comes on top of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOORED_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "real.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def straight(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    done = subprocess.run(command(recipe, folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def adapter(folder: Path, record: Record) -> Any:
    key = next(stage.key for stage in record.stages if stage.kind == "finetune")
    path = folder / "store" / "artifacts" / f"finetune-{key[:16]}" / "model" / "adapter_model.safetensors"
    assert not list(path.parent.glob("checkpoint-*"))
    return load_file(path)


@pytest.mark.slow
def test_the_whole_line(straight: Path) -> None:
    record = Record.load(straight / "real.json")
    both = record.arm("both")
    assert both.methods == ["Vaccine", "Lisa", "SafeLoRA"]
    assert set(both.fired) == {"vaccine", "lisa"}
    assert all(proof.count > 0 for proof in both.fired.values())
    assert both.repairs[0].changed == sum(row.edited for row in both.layers) > 0
    assert (both.drift[0].step, both.drift[0].weight) == (0, 0.0)
    assert both.drift[-1].weight > 0
    assert both.passes_per_step > 1
    assert {share.n + share.unjudged for share in both.metrics.values()} == {4, 6}
    assert (straight / "real.html").read_text().lower().startswith("<!doctype html>")
    shown = (straight / "stdout").read_text()
    assert "All three" in shown
    assert str(straight / "real.html") in shown


@pytest.mark.slow
def test_the_command_line_equals_the_api(recipe: Path, straight: Path) -> None:
    before = Record.load(straight / "real.json").plain()
    store = Store(straight / "store")
    again = Study(Recipe.load(recipe)).run(store).plain()
    store.close()
    assert all(stage["cached"] for stage in again["stages"])
    same = ("arms", "tasks", "recipe", "inputs", "name", "seed", "versions")
    assert {name: again[name] for name in same} == {name: before[name] for name in same}


def stopped(recipe: Path, folder: Path, how: signal.Signals) -> tuple[int, str]:
    """Start a run, stop it in the middle of fine-tuning; its exit code and what it said."""
    process = subprocess.Popen(
        command(recipe, folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        # Where the tests themselves run in the background, a shell has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list((folder / "store").glob("work/finetune-*/model/checkpoint-[2-9]/trainer_state.json")):
        assert time.monotonic() < deadline, "no checkpoint came"
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(recipe: Path, straight: Path, tmp_path: Path) -> None:
    code, _ = stopped(recipe, tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL
    resumed = subprocess.run(command(recipe, tmp_path), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    before, record = Record.load(straight / "real.json"), Record.load(tmp_path / "real.json")
    assert any(stage.cached for stage in record.stages)
    assert any("was stopped and resumed" in warning for warning in record.warnings)
    first, second = adapter(straight, before), adapter(tmp_path, record)
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    assert record.plain()["arms"][-1]["metrics"] == before.plain()["arms"][-1]["metrics"]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    code, said = stopped(recipe, tmp_path, signal.SIGINT)
    assert code == 130
    assert said.rstrip().endswith("stopped; run the same command again to resume")
    assert "Traceback" not in said
    assert list((tmp_path / "store").glob("work/finetune-*/model/checkpoint-*"))
