# SPDX-License-Identifier: Apache-2.0
"""Jobs on a real Ray cluster of this machine: started once, found again, stopped, and ended with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from moored.errors import ConfigError
from moored.service.folder import JobFolder
from moored.service.launchers.base import UNSEEN, Away, Launcher
from moored.service.launchers.named import launcher_named
from service.a_ray_cluster import a_ray_cluster, free_ports
from service.job_server import Bench, weights_hash
from service.test_kill import expire
from service.test_pipeline import LONG, training, until, wish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs a Ray cluster: pip install 'moored[ray]'"),
]

PROGRAM = """
import os, signal, sys, time
def heard(*_):
    print("asked", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, heard)
print("begun", os.environ["MOORED_FOUND_BY"], repr(os.environ["CUDA_VISIBLE_DEVICES"]), os.getcwd(), flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def cluster():
    # Ray puts sockets there, whose whole names must not be longer than 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray") as folder, a_ray_cluster(Path(folder)) as found:
        yield found


@pytest.fixture
def options(cluster, monkeypatch):
    address, token = cluster
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    return {"address": address, "sees": "2", "grace": "60"}


@pytest.fixture
def make(tmp_path):
    made = []

    def one(options):
        made.append(launcher_named("ray", options, slots=1, folder=tmp_path / "slots"))
        return made[-1]

    yield one
    for each in made:
        each.close()


def command(seconds):
    return [sys.executable, "-c", PROGRAM, str(seconds)]


def ended(ray, handle):
    until(lambda: ray.poll(handle) is not None, 120)
    return ray.poll(handle)


def begun(folder):
    return (folder / "tuning.log").is_file() and "begun" in (folder / "tuning.log").read_text()


def test_a_command_runs_once_is_found_again_and_stops_when_asked(tmp_path, options, make):
    ray = make(options)
    ray.check()
    assert isinstance(ray, Launcher)
    folder = tmp_path / "job 'one'"
    folder.mkdir()
    handle = ray.start(command(120), folder, {"HF_TOKEN": "secret", **os.environ})
    until(lambda: begun(folder), 120)
    again = make(options)  # of a worker that came after
    assert again.find(folder) == handle == again.start(command(120), folder, os.environ)
    assert again.poll(handle) is None
    assert (folder / "tuning.log").read_text() == f"begun ray '' {os.getcwd()}\n"
    assert "secret" not in str(again._job(handle["ray"]))
    again.stop(handle, grace=30.0)
    assert (folder / "tuning.log").read_text().splitlines()[1:] == ["asked"]
    assert again.find(folder) is None
    after = again.start(command(0), folder, os.environ)
    assert after["ray"].endswith("-2")
    assert ended(again, after).code == 7


def test_a_request_that_was_forgotten_is_not_made_twice(tmp_path, options, make, monkeypatch):
    """The worker is killed after Ray got the job, and before it had Ray's answer."""
    ray, folder = make(options), tmp_path / "job"
    folder.mkdir()
    handle = ray.start(command(120), folder, os.environ)
    monkeypatch.setattr(type(ray), "find", lambda self, folder: None)  # Ray has not got it yet, for all one sees
    monkeypatch.setattr(type(ray), "_next", lambda self, folder: handle["ray"])
    assert ray.start(command(120), folder, os.environ) == handle
    until(lambda: begun(folder), 120)
    ray.stop(handle, grace=30.0)
    assert (folder / "tuning.log").read_text().count("begun") == 1


def test_a_node_that_cannot_see_the_folder_is_the_reason(tmp_path, options, make):
    ray, folder = make(options), tmp_path / "job"
    folder.mkdir()
    handle = ray.start(command(0), folder, os.environ)
    (folder / "process.json").rename(folder / "process.elsewhere")  # as in a folder of the same name on another disk
    found = ended(ray, handle)
    assert found.code == UNSEEN
    assert found.why.endswith(f"does not see {folder} as it is where the server runs")
    assert not (folder / "tuning.log").exists()


def test_a_python_that_is_not_there_is_the_reason(tmp_path, options, make):
    ray, folder = make({**options, "python": "/no/such/python"}), tmp_path / "job"
    folder.mkdir()
    found = ended(ray, ray.start(command(0), folder, os.environ))
    assert found.why.endswith("has no /no/such/python; name its interpreter by the option `python`")


def test_a_cluster_that_is_not_there(tmp_path, options, make, monkeypatch):
    nobody = make({"address": f"http://127.0.0.1:{free_ports(1)[0]}"})
    with pytest.raises(ConfigError, match="no Ray cluster answers .* name its dashboard by --launcher-option address="):
        nobody.check()
    JobFolder(tmp_path).write_json("process.json", {"ray": "moored-x-1"})
    with pytest.raises(Away, match="does not answer"):
        nobody.find(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(ConfigError, match=r"wants a token: put it into \$RAY_AUTH_TOKEN"):
        make(options).check()


def test_a_whole_job_whose_workers_are_killed(tmp_path, options, make):
    """The weights are those of a job on this machine that nobody disturbed."""
    straight, bench = Bench.at(tmp_path / "straight"), Bench.at(tmp_path / "home")
    straight_id = straight.job(hyperparameters=LONG)
    straight.worker().run(once=True)
    job_id = bench.job(hyperparameters=LONG)
    script = Path(__file__).with_name("worker_process.py")
    words = [f"{name}={value}" for name, value in options.items()]
    killed = 0
    for moment in (_named, lambda bench, job_id: training(bench, job_id)):
        worker = subprocess.Popen([sys.executable, str(script), str(bench.settings.home), "ray", *words])
        until(lambda moment=moment: moment(bench, job_id), 180)
        worker.kill()
        worker.wait()
        killed += 1
        expire(bench)
    bench.launcher = make(options)
    bench.worker(look=0.2).run(once=True)
    job = bench.read(job_id)
    assert (job.status, job.error, killed) == ("succeeded", None, 2), bench.said(job_id)
    assert weights_hash(bench.settings.model(job_id)) == weights_hash(straight.settings.model(straight_id))
    states = [(line["kind"], line["state"]) for _, line in bench.folder(job_id).events()]
    assert states.count(("finetune", "started")) == 1  # nobody ran it twice, and nobody had to run it again
    assert bench.folder(job_id).read_json("process.json")["ray"].endswith("-1")
    for each in (straight, bench):
        each.database.close()


def _named(bench, job_id):
    return (bench.folder(job_id).path / "process.json").exists()


def test_a_job_is_paused_on_the_cluster_and_goes_on(tmp_path, options, make):
    bench = Bench.at(tmp_path / "home")
    bench.launcher = make(options)
    job_id = bench.job(hyperparameters=LONG)
    import threading

    thread = threading.Thread(target=lambda: bench.worker(look=0.2).run(once=True))
    thread.start()
    until(lambda: training(bench, job_id), 180)
    wish(bench, job_id, "pause")
    thread.join()
    assert bench.read(job_id).status == "paused"
    assert list(bench.settings.store.glob("work/finetune-*/model/checkpoint-*"))
    wish(bench, job_id, "resume")
    bench.worker(look=0.2).run(once=True)
    assert bench.read(job_id).status == "succeeded", bench.said(job_id)
    assert bench.folder(job_id).read_json("process.json")["ray"].endswith("-2")
    bench.database.close()
