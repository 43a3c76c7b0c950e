# SPDX-License-Identifier: Apache-2.0
"""`kill -9` at any moment: no job is lost or run twice, and the weights are those of a run that nobody disturbed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from moored.service.claims import Lost, claim
from moored.service.database import Job
from moored.service.launchers.local import LocalLauncher
from service.job_server import Bench, weights_hash

LONG = {"n_epochs": 6}


def worker_process(bench):
    script = Path(__file__).with_name("worker_process.py")
    return subprocess.Popen([sys.executable, str(script), str(bench.settings.home)], stderr=subprocess.DEVNULL)


def expire(bench):
    """As if the lease of the dead worker had run out."""
    with bench.database.writing() as session:
        session.query(Job).update({"lease_until": 0})


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_ends_as_if_nothing_had_been(tmp_path):
    straight, bench = Bench.at(tmp_path / "straight"), Bench.at(tmp_path / "home")
    straight_id = straight.job(hyperparameters=LONG)
    straight.worker().run(once=True)
    job_id = bench.job(hyperparameters=LONG)
    chance, kills = random.Random(7), 0
    while kills < 5:
        worker = worker_process(bench)
        time.sleep(chance.uniform(2, 9))
        if worker.poll() is not None:
            break
        # The child with it, or it alone: then the next worker finds the child at work.
        for each in psutil.Process(worker.pid).children(recursive=True) if chance.random() < 0.6 else []:
            each.kill()
        worker.kill()
        worker.wait()
        kills += 1
        expire(bench)
    assert worker_process(bench).wait(timeout=300) == 0
    assert kills >= 2
    job = bench.read(job_id)
    assert (job.status, job.phase, job.error) == ("succeeded", "over", None), bench.said(job_id)
    assert weights_hash(bench.settings.model(job_id)) == weights_hash(straight.settings.model(straight_id))
    assert bench.models() == {job_id: "passed"}
    folder = bench.folder(job_id)
    finished = [
        line["key"]
        for line in (json.loads(text) for _, text in whole_lines(folder))
        if line.get("state") == "finished" and line["kind"] != "study"
    ]
    assert len(finished) == len(set(finished))  # no stage was done twice
    said = bench.said(job_id)
    assert len(said) == len(set(said))
    assert said.count("The job has successfully completed") == 1
    assert not [
        path for path in bench.settings.home.rglob("*.tmp") if "store" not in path.parts and "work" not in path.parts
    ]
    straight.database.close()
    bench.database.close()


def whole_lines(folder):
    for number, line in enumerate(folder.progress.read_text(encoding="utf-8").splitlines()):
        try:
            json.loads(line)
        except ValueError:
            continue
        yield number, line


def test_two_workers_never_take_one_job(tmp_path):
    bench = Bench.at(tmp_path / "home")
    jobs = [bench.job(training_file="file-x") for _ in range(12)]
    taken, barrier = [], threading.Barrier(4)

    def race():
        barrier.wait()
        while (found := claim(bench.database, 60, ("validating_files",))) is not None:
            taken.append(found.job_id)

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(jobs)
    bench.database.close()


def test_a_worker_that_was_thought_dead_writes_nothing_more(tmp_path):
    bench = Bench.at(tmp_path / "home")
    job_id = bench.job()
    first = claim(bench.database, 60, ("validating_files",))
    expire(bench)
    second = claim(bench.database, 60, ("validating_files",))
    assert second.job_id == first.job_id == job_id
    with pytest.raises(Lost):
        first.move("moved on")
    with pytest.raises(Lost):
        first.note()
    assert second.move("moved on").phase == "screening"
    bench.database.close()


def test_a_lease_of_a_wrong_clock_is_void(tmp_path):
    bench = Bench.at(tmp_path / "home")
    bench.job()
    assert claim(bench.database, 60, ("validating_files",)) is not None
    assert claim(bench.database, 60, ("validating_files",)) is None  # it is held
    with bench.database.writing() as session:
        session.query(Job).update({"lease_until": 2**40})
    assert claim(bench.database, 60, ("validating_files",)) is not None
    bench.database.close()


def test_a_locked_database_is_waited_for(tmp_path, monkeypatch):
    from sqlalchemy.exc import OperationalError

    bench = Bench.at(tmp_path / "home")
    job_id = bench.job()
    held = claim(bench.database, 60, ("validating_files",))
    writing, failures = bench.database.writing, [1, 1]

    def locked():
        if failures:
            failures.pop()
            raise OperationalError("UPDATE", {}, Exception("database is locked"))
        return writing()

    monkeypatch.setattr(bench.database, "writing", locked)
    held.move("moved on")
    assert bench.read(job_id).phase == "screening"
    bench.database.close()


def test_a_launched_process_is_found_again_and_its_slot_is_its_own(tmp_path):
    from moored.service.launchers.base import NoSlot

    launcher = LocalLauncher(slots=1, folder=tmp_path / "slots")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    command = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
    handle = launcher.start(command, one, {"PATH": "/usr/bin"})
    again = LocalLauncher(slots=1, folder=tmp_path / "slots")  # of a worker that came after
    assert again.find(one) == handle == again.start(command, one, {})
    with pytest.raises(NoSlot):
        again.start(command, two, {})
    again.stop(handle, grace=0.0)
    assert again.poll(handle) is not None
    assert again.find(one) is None
    assert launcher.poll(handle).code == -signal.SIGKILL
    quick = launcher.start([sys.executable, "-c", ""], two, {})
    while launcher.poll(quick) is None:
        time.sleep(0.05)
    assert launcher.poll(quick).code == 0


def test_what_a_process_may_know(monkeypatch):
    from moored.service.pipeline import _environment

    given = {
        "PATH": "/bin",
        "MOORED_KEY": "x",
        "OPENAI_API_KEY": "x",
        "DATABASE_URL": "x",
        "HF_HOME": "y",
        "MY_SECRET": "x",
    }
    assert _environment(given) == {"PATH": "/bin", "HF_HOME": "y"}
