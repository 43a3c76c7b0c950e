# SPDX-License-Identifier: Apache-2.0
"""Jobs under Slurm, by stand-ins for its three programs that run the script, list it and end it as Slurm does."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from moored.errors import ConfigError
from moored.service.folder import JobFolder
from moored.service.launchers.base import STOPPED, UNSEEN, Away, Launcher
from moored.service.launchers.named import launcher_named
from service.job_server import Bench
from service.test_pipeline import until

SBATCH = r"""#!/bin/sh
# Runs the script as Slurm would: by itself, printing to --output, its number in the environment.
printf '%s\n' "$@" >> "$FAKE/sbatch.words"
for word; do
  case "$word" in --output=*) out=${word#--output=};; --job-name=*) name=${word#--job-name=};; esac
  script=$word
done
number=$(( $(cat "$FAKE/number" 2>/dev/null || echo 100) + 1 )); echo $number > "$FAKE/number"
echo "$name" > "$FAKE/$number.name"
SLURM_JOB_ID=$number setsid sh "$script" >> "$out" 2>&1 < /dev/null &
echo $! > "$FAKE/$number.pid"
echo "$number;cluster"
"""
SQUEUE = r"""#!/bin/sh
[ -e "$FAKE/away" ] && { echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1; }
for word; do case "$word" in --jobs=*) number=${word#--jobs=};; --name=*) name=${word#--name=};; esac; done
alive() {
  [ -e "$FAKE/$1.pid" ] && pid=$(cat "$FAKE/$1.pid") && kill -0 "$pid" 2>/dev/null &&
    [ "$(ps -o stat= -p "$pid" | cut -c1)" != Z ]
}
if [ -n "$number" ]; then
  [ -e "$FAKE/$number.pid" ] || { echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; }
  if alive "$number"; then echo RUNNING; else cat "$FAKE/$number.state" 2>/dev/null || echo COMPLETED; fi
else
  for file in "$FAKE"/*.name; do
    [ "$(cat "$file" 2>/dev/null)" = "$name" ] && alive "$(basename "$file" .name)" && basename "$file" .name
  done
  exit 0
fi
"""
SCANCEL = r"""#!/bin/sh
printf '%s\n' "$*" >> "$FAKE/scancel.words"
signal=KILL; group=-
for word; do case "$word" in --signal=*) signal=${word#--signal=};; --batch) group=;; *) number=$word;; esac; done
[ "$signal" = KILL ] && echo CANCELLED > "$FAKE/$number.state"
kill -$signal "$group$(cat "$FAKE/$number.pid")"
"""
PROGRAM = """
import os, signal, sys, time
def heard(*_):
    print("asked", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, heard)
print("begun", os.environ["MOORED_FOUND_BY"], repr(os.environ.get("CUDA_VISIBLE_DEVICES")), flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    yield folder
    for file in folder.glob("*.pid"):
        subprocess.run(["kill", "-9", "--", f"-{file.read_text().strip()}"], stderr=subprocess.DEVNULL, check=False)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "job 'one' 100%"
    made.mkdir()
    return made


def make(**options):
    return launcher_named("slurm", {"look": "0", "sees": "1", **options}, slots=1, folder=Path("unused"))


def command(seconds=60.0, code=7):
    return [sys.executable, "-c", PROGRAM, str(seconds), str(code)]


def ended(slurm, handle):
    until(lambda: slurm.poll(handle) is not None, 60)
    return slurm.poll(handle)


def printed(folder):
    return (folder / "tuning.log").read_text() if (folder / "tuning.log").exists() else ""


def test_what_slurm_is_asked_for(fake, folder):
    slurm = make(partition="a100", account="lab", time="4:00:00", cpus="8", gpus="1", memory="32G", grace="90")
    assert isinstance(slurm, Launcher)
    slurm.check()
    handle = slurm.start(command(0.0), folder, {**os.environ, "HF_HOME": "/models of all"})
    words = (fake / "sbatch.words").read_text().splitlines()
    assert words[-1] == str(folder / "slurm.sh")
    assert set(words[:-1]) == {
        "--parsable",
        "--no-requeue",
        f"--job-name={handle['name']}",
        "--dependency=singleton",
        f"--output={folder}/tuning.log".replace("%", "%%"),
        "--open-mode=append",
        "--cpus-per-task=8",
        "--gpus=1",
        "--mem=32G",
        "--time=4:00:00",
        "--partition=a100",
        "--account=lab",
        "--signal=B:TERM@90",
    }
    assert handle["name"].startswith("moored-job-one-100-")
    script = (folder / "slurm.sh").read_text()
    assert " 'HF_HOME=/models of all' " in script
    assert " MOORED_FOUND_BY=slurm " in script
    assert "CUDA_VISIBLE_DEVICES=" not in script  # Slurm says which


def test_a_command_runs_once_is_found_again_and_stops_when_asked(fake, folder):
    # Slurm writes what a script prints; the stand-in does not know its %%.
    folder = folder.rename(folder.with_name("job 'one'"))
    slurm = make()
    handle = slurm.start(command(), folder, os.environ)
    assert handle["slurm"] == "101"
    until(lambda: "begun" in printed(folder))
    again = make()  # of a worker that came after
    assert again.find(folder) == handle == again.start(command(), folder, os.environ)
    assert again.poll(handle) is None
    again.stop(handle, grace=30.0)
    assert printed(folder) == "begun slurm ''\nasked\n"
    assert again.poll(handle).code == STOPPED
    assert (fake / "scancel.words").read_text() == "--batch --signal=TERM 101\n"
    assert again.find(folder) is None
    after = again.start(command(0.0), folder, os.environ)
    assert after["slurm"] == "102"
    assert ended(again, after).code == 7


def test_one_that_does_not_stop_is_cancelled(fake, folder):
    folder = folder.rename(folder.with_name("job"))
    slurm = make()
    deaf = "import signal, time; signal.signal(15, lambda *_: print('no')); print('deaf', flush=True)\n"
    handle = slurm.start([sys.executable, "-c", f"{deaf}while True: time.sleep(1)"], folder, os.environ)
    until(lambda: JobFolder(folder).log.is_file() and "deaf" in JobFolder(folder).log.read_text())
    slurm.stop(handle, grace=2.0)
    assert (fake / "scancel.words").read_text().splitlines()[-1] == "101"
    assert slurm.poll(handle).code is None
    assert slurm.poll(handle).why == ""


def test_a_worker_that_is_killed_before_it_hears_the_number(fake, folder):
    folder = folder.rename(folder.with_name("job"))
    handle = make().start(command(), folder, os.environ)
    JobFolder(folder).write_json("process.json", {**handle, "slurm": ""})
    slurm = make()
    assert slurm.find(folder) == handle
    assert slurm.start(command(), folder, os.environ) == handle
    slurm.stop(handle, grace=0.0)
    assert slurm.find(folder) is None


@pytest.mark.parametrize(("code", "told"), [(0, 0), (1, 1), (28, 28), (137, -9)])
def test_exit_statuses(fake, folder, code, told):
    folder = folder.rename(folder.with_name("job"))
    slurm = make()
    assert ended(slurm, slurm.start(command(0.0, code), folder, os.environ)).code == told


def test_what_keeps_a_job_from_beginning_is_the_reason(fake, folder, tmp_path):
    folder = folder.rename(folder.with_name("job"))
    slurm = make(python="/no/such/python")
    found = ended(slurm, slurm.start(command(), folder, os.environ))
    assert found.code == UNSEEN
    assert found.why.endswith("has no /no/such/python; name its interpreter by the option `python`")
    slurm = make()
    handle = slurm.start(command(0.0), folder, os.environ)
    ended(slurm, handle)
    (folder / "slurm.status").unlink()  # as on a node that could write nothing
    (fake / f"{handle['slurm']}.state").write_text("FAILED")
    assert make().poll(handle).why.endswith(f"could not write to {folder}: its node does not see that folder")
    (fake / f"{handle['slurm']}.state").write_text("OUT_OF_MEMORY")
    assert make().poll(handle).code == -9


def test_slurm_that_does_not_answer(fake, folder, monkeypatch):
    handle = make().start(command(), folder, os.environ)
    (fake / "away").touch()
    with pytest.raises(Away, match="Unable to contact slurm controller"):
        make().find(folder)
    with pytest.raises(ConfigError, match="Slurm does not answer"):
        make().check()
    (fake / "away").unlink()
    assert make().poll({**handle, "slurm": "7"}).code is None  # forgotten by Slurm
    shutil.rmtree(fake)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="needs sbatch, squeue, scancel on the PATH"):
        make().check()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"gpus": "2"}, "one device"), ({"partiton": "x"}, "did you mean 'partition'"), ({"time": "long"}, "time")],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        make(**options)


@pytest.mark.slow
def test_a_whole_job(fake, tmp_path):
    bench = Bench.at(tmp_path / "home")
    bench.launcher = make()
    job_id = bench.job()
    bench.worker(look=0.2).run(once=True)
    job = bench.read(job_id)
    assert (job.status, job.error) == ("succeeded", None), bench.said(job_id)
    assert bench.folder(job_id).read_json("process.json")["slurm"] == "101"
    bench.database.close()
