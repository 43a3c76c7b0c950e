# SPDX-License-Identifier: Apache-2.0
"""A study whose rows run by themselves: the same record as in one process, and nothing made twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from moored.cli import main
from moored.errors import StudyError
from moored.report.record import Record
from moored.service.folder import JobFolder
from moored.service.launchers.base import Ended, NoSlot
from moored.service.launchers.named import launcher_named
from moored.service.row import main as row_main
from moored.service.rows import Rows
from moored.service.tuning import Stop
from moored.study.recipe import Recipe
from moored.study.store import Store
from moored.study.study import Study
from service.test_pipeline import until
from study import conftest

TREE = conftest.TREE
GRID = TREE | {"model": "tiny", "grid": {"attack.harmful_mix.ratio": [0.2, 0.4]}}
SMALL = GRID | {"arms": {name: TREE["arms"][name] for name in ("plain", "repaired")}}
SMALL |= {"tasks": {"harmful_requests": {"n": 2, "max_new_tokens": 4}, "perplexity": {"n": 2}}}
TIMES = {"seconds", "created", "peak_bytes", "command"}
"""What differs from run to run of the very same process."""


def timeless(record):
    def told(value):
        if isinstance(value, dict):
            return {name: told(item) for name, item in value.items() if name not in TIMES}
        return [told(item) for item in value] if isinstance(value, list) else value

    return json.dumps(told(record.plain()), sort_keys=True)


class Here:
    """Runs a row at once, in this process, and keeps what was asked of it."""

    def __init__(self, *, slots=99):
        self.slots, self.started, self.codes = slots, [], {}

    def check(self):
        pass

    def start(self, command, folder, environment):
        if len(self.started) - len(self.codes) >= self.slots:
            raise NoSlot
        self.started.append(JobFolder(folder).read_json("row.json")["row"])
        self.work(command, folder)
        return {"folder": str(folder)}

    def work(self, command, folder):
        assert command[:3] == [sys.executable, "-m", "moored.service.row"]
        self.codes[str(folder)] = row_main(command[3:])

    def find(self, folder):
        return None

    def poll(self, handle):
        return Ended(code=self.codes[handle["folder"]])

    def stop(self, handle, *, grace):
        self.stopped = [*getattr(self, "stopped", []), handle["folder"]]


work = conftest.work
"""Replaces training and answering by traces of them."""


@pytest.fixture(autouse=True)
def _signals(monkeypatch):
    monkeypatch.setattr(Stop, "listen", lambda self: None)


def in_one_process(folder, tree=GRID):
    store = Store(folder / "alone")
    record = Study(Recipe.parse(tree)).run(store)
    store.close()
    return record


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


def rows(store, launcher, tree=GRID, **more):
    return Rows(study=Study(Recipe.parse(tree)), store=store, launcher=launcher, look=0.0, **more)


def test_the_record_is_that_of_one_process(store, tmp_path, work):
    plain = in_one_process(tmp_path)
    once = sorted(work.done)
    work.done.clear()
    seen, here = [], Here()
    record = rows(store, here, watch=seen.append).run()
    assert timeless(record) == timeless(plain)
    assert sorted(work.done) == once
    assert not any(stage.cached for stage in record.stages)
    assert here.started == [arm.name for arm in plain.arms]
    finished = [event.stage.key for event in seen if event.state == "finished"]
    assert sorted(finished) == sorted(stage.key for stage in plain.stages)
    assert not [event for event in seen if event.state == "reused"]
    assert list((store.root / "rows").iterdir()) == []
    again = Here()
    record = rows(store, again).run()
    assert again.started == []
    assert all(stage.cached for stage in record.stages)


def test_a_row_waits_while_another_makes_what_it_needs(store, work):
    """The launcher holds a row back; those that share a stage with it do not begin."""

    class Held(Here):
        def work(self, command, folder):
            self.later = getattr(self, "later", [])
            self.later.append((command, folder))

        def poll(self, handle):
            if handle["folder"] in self.codes:
                return Ended(code=self.codes[handle["folder"]])
            if not getattr(self, "seen", None):  # by now all that could begin has begun
                self.seen = list(self.started)
            for command, folder in self.later:
                super().work(command, folder)
            self.later.clear()
            return None

    held = Held()
    record = rows(store, held).run()
    assert held.seen == ["shipped", "aligned"]  # every other row needs the alignment
    assert held.started.index("plain@ratio=0.4") < held.started.index("repaired@ratio=0.2")
    assert len(record.arms) == 8


def test_a_row_that_fails_is_the_studys_failure(store, work, monkeypatch):
    def fine_tune(*args, **kwargs):
        raise StudyError("the weights are not there")

    monkeypatch.setattr("moored.hf.train.fine_tune", fine_tune)
    with pytest.raises(StudyError, match="row 'aligned' failed: StudyError: the weights are not there"):
        rows(store, Here()).run()


def test_a_row_that_dies_without_a_word_is_tried_three_times(store, work):
    class Deadly(Here):
        def work(self, command, folder):
            self.codes[str(folder)] = -9

    deadly = Deadly()
    with pytest.raises(StudyError, match="row 'shipped' ended 3 times without a word, .* exit status -9"):
        rows(store, deadly, tree=SMALL).run()


def test_a_row_that_was_asked_to_stop_goes_on(store, tmp_path, work):
    """A limit of time ends it; there is a checkpoint, and the next process goes on from there."""

    class Limited(Here):
        def work(self, command, folder):
            self.codes[str(folder)] = 130 if self.started.count(self.started[-1]) < 6 else row_main(command[3:])

    assert timeless(rows(store, Limited()).run()) == timeless(in_one_process(tmp_path))


def test_a_row_cannot_begin(store, work):
    class Blind(Here):
        def poll(self, handle):
            return Ended(code=66, why="node-3 does not see /store")

        def work(self, command, folder):
            pass

    with pytest.raises(StudyError, match="row 'shipped' failed: node-3 does not see /store"):
        rows(store, Blind()).run()


def test_the_store_keeps_nothing_in_memory_that_machines_would_have_to_share(store):
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.mark.slow
def test_processes_that_are_killed_and_a_command_that_is_killed(tmp_path):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(json.dumps(SMALL))
    command = [sys.executable, "-m", "moored", "run", str(recipe), "--out", str(out), "--launcher", "local"]
    folders, log = out / "store" / "rows", (tmp_path / "log").open("wb")
    first = subprocess.Popen(command, stderr=log)
    until(lambda: list(folders.glob("*/process.json")), 300)
    first.kill()  # its rows go on
    first.wait()
    second = subprocess.Popen(command, stderr=log)
    until(lambda: list(folders.glob("*/progress.jsonl")), 300)
    for file in list(folders.glob("*/process.json"))[:1]:
        with suppress(ProcessLookupError):
            os.kill(json.loads(file.read_text())["pid"], signal.SIGKILL)
    assert second.wait(600) == 0, (tmp_path / "log").read_text()
    log.close()
    found = Record.load(out / "small.json")
    made = json.loads(timeless(found))
    wanted = json.loads(timeless(in_one_process(tmp_path, SMALL)))
    for stages in (made["stages"], wanted["stages"]):  # what the first command made, the second one reuses
        for stage in stages:
            stage.pop("cached")
    assert made == wanted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--launcher", "slrum"], "did you mean 'slurm'"),
        (["--launcher", "local", "--launcher-option", "gpus=1"], "gpus"),
        (["--launcher", "local", "--launcher-option", "gpus"], "must look like `gpus=1`"),
        (["--launcher", "ray", "--launcher-option", "gpus=2"], "one job trains on one device in this version"),
        (["--launcher", "ray", "--launcher-option", "address=http://127.0.0.1:9"], "no Ray cluster answers"),
        (["--launcher", "local", "--launcher-option", "devices=0"], "2 slots are more than the option `devices` names"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(tmp_path, capsys, words, said):
    (tmp_path / "recipe.yaml").write_text(json.dumps(SMALL))
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(Path(tmp_path / "out").glob("store/artifacts/*"))


def test_launchers_by_their_names(tmp_path):
    found = launcher_named("local", {"devices": "0,1", "nice": "3"}, slots=2, folder=tmp_path)
    assert (found.devices, found.nice, found.slots) == (("0", "1"), 3, 2)
