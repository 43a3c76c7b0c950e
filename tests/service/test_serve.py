# SPDX-License-Identifier: Apache-2.0
"""`moored serve` and `moored keys`, as an operator types them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import typing
from contextlib import contextmanager
from unittest.mock import patch

import httpx
import openai
import pytest

from moored.cli import keys, main, serve
from moored.service import child, database
from moored.service.child import Child
from moored.service.explain import explained
from moored.service.policy import Policy, default_policy

POLICY = """
name = "small"
[models."tiny.one"]
source = "tiny"
[defend]
training = { steps = 2 }
[audit]
tasks = { harmful_requests = { n = 8 } }
over_refusal = "harmful_requests"
utility = "harmful_requests"
"""


@pytest.fixture(autouse=True)
def _own_environment():
    with patch.dict(os.environ):
        yield


def _wait(ready, seconds=90):
    until = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)
    return found


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def _served(home, *words):
    """The command in a process of its own, with what it has printed."""
    out = home.parent / f"{home.name}.out"
    with out.open("w") as stream:
        command = [sys.executable, "-m", "moored", "serve", "--home", str(home), "--port", "0", *words]
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield process, lambda: out.read_text()
    finally:
        process.kill()
        process.wait()


def _ready(said):
    text = _wait(lambda: said() if "jobs.retrieve" in said() else "")
    url = re.search(r"http://\S+/v1", text)[0]
    _wait(lambda: _answers(url))
    return url, text


def _answers(url):
    try:
        return httpx.get(url.removesuffix("/v1") + "/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_the_first_start_prints_a_key_that_works_and_the_second_none(tmp_path, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "policy.toml").write_text(POLICY)
    with _served(home) as (process, said):
        url, text = _ready(said)
        key = re.search(r"sk-moored-\S{20,}", text)[0]
        lines = [line.strip() for line in text.splitlines() if line.startswith("    ")][1:]
        assert len(lines) == 5
        assert 'model="tiny.one"' in lines[3]
        rows = tmp_path / "rows.jsonl"
        rows.write_bytes(
            b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}\n' * 10
        )
        program = "\n".join(lines[:3]).replace("rows.jsonl", str(rows)) + "\nprint(upload.id); client.close()"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stdout.startswith("file-"), done.stderr
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            assert client.files.retrieve(done.stdout.strip()).filename == "rows.jsonl"
        assert home.joinpath("moored.sqlite").stat().st_mode & 0o077 == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert "Traceback" not in said()
    with _served(home) as (process, said):
        url, text = _ready(said)
        assert "sk-moored" not in text
        assert main(["keys", "create", "--home", str(home), "--role", "operator"]) == 0
        key = capsys.readouterr().out.strip()
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            assert [file.filename for file in client.files.list()] == ["rows.jsonl"]
            process.send_signal(signal.SIGKILL)  # at any moment: what was answered is there
            process.wait()
        assert home.joinpath("policy.toml").read_text() == POLICY


def test_keys_are_made_listed_and_revoked(tmp_path, capsys):
    home = str(tmp_path)
    assert main(["keys", "list", "--home", home]) == 2
    assert "moored serve --home" in capsys.readouterr().err
    (tmp_path / "moored.sqlite").touch()

    def said(*words):
        code = main(["keys", *words, "--home", home])
        caught = capsys.readouterr()
        return code, caught.out.strip() or caught.err.strip()

    assert said("project", "lab", "--set", "jobs_per_day=5")[1].endswith("jobs_per_day = 5")
    assert said("project", "lab", "--set", "jobs_per_day=null", "--set", "rows=40")[1].endswith(": rows = 40")
    assert "did you mean 'rows'" in said("project", "lab", "--set", "row=40")[1]
    assert "rows = 40" in said("projects")[1]
    code, key = said("create", "--project", "lab", "--name", "mine")
    assert code == 0
    assert key.startswith("sk-moored-")
    assert "did you mean 'lab'" in said("create", "--project", "lap")[1]
    assert "'boss' is not one of 'user', 'operator', 'admin'" in said("create", "--role", "boss")[1]
    assert typing.get_args(keys.Role) == typing.get_args(database.Role)
    shown = said("list")[1]
    assert "mine" in shown
    assert key not in shown
    identity = re.search(r"key-\w+", shown)[0]
    assert said("revoke", identity)[0] == 0
    assert said("revoke", "key-nothing")[0] == 2


def test_a_missing_extra_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(serve, "NEEDED", ("json", "no_such_package_xyz"))
    for words in (["serve"], ["keys", "list"]):
        assert main(words) == 2
        assert "no_such_package_xyz: pip install 'moored[serve]'" in capsys.readouterr().err


def test_a_taken_port_is_said_before_anything_is_made(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code = main(["serve", "--home", str(tmp_path / "home"), "--port", str(taken.getsockname()[1])])
    assert code == 2
    assert "give another --host or --port" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_an_answer_does_not_wait_for_the_next_packet(tmp_path):
    with serve._bound(serve.settings_of(home=tmp_path, port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--launcher", "slrum"], "`launcher`"), (["--engine", "ftp://x"], "`engine`"), (["--port", "x"], "--port")],
)
def test_settings_that_are_wrong(tmp_path, capsys, words, said):
    assert main(["serve", "--home", str(tmp_path / "home"), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", [default_policy(), POLICY])
def test_an_explained_policy_is_the_same_policy(tmp_path, capsys, text):
    (tmp_path / "policy.toml").write_text(text)
    policy = Policy.load(tmp_path / "policy.toml")
    assert main(["serve", "--home", str(tmp_path), "--explain-policy"]) == 0
    shown = capsys.readouterr().out
    assert shown == explained(policy)
    (tmp_path / "again.toml").write_text(shown)
    assert Policy.load(tmp_path / "again.toml").sha256 == policy.sha256
    assert tomllib.loads(shown)["limits"]["answer_tokens"] == 1024
    assert max(map(len, shown.splitlines())) <= 120


SLEEPER = "import os, sys, time\nopen(sys.argv[1], 'a').write(f'{os.getpid()} {sys.argv[2:]}\\n')\ntime.sleep(600)\n"


@pytest.fixture
def sleeper(tmp_path, monkeypatch):
    """A module that writes its pid and sleeps, and the pids that it wrote."""
    (tmp_path / "sleeper_module.py").write_text(SLEEPER)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("PYTHONPATH", path)
    seen = tmp_path / "seen"

    def pids():
        return [int(line.split()[0]) for line in seen.read_text().splitlines()] if seen.exists() else []

    return seen, pids


def test_a_worker_that_dies_is_started_again_and_ends_with_the_server(sleeper, monkeypatch):
    seen, pids = sleeper
    monkeypatch.setattr(child, "SHORTEST_WAIT", 0.05)
    worker = Child("sleeper_module", [str(seen), "--home", "x"])
    worker.start()
    _wait(lambda: len(pids()) == 1)
    assert "['--home', 'x']" in seen.read_text()
    os.kill(pids()[0], signal.SIGKILL)
    _wait(lambda: len(pids()) == 2)
    assert worker.pid == pids()[1]
    worker.stop()
    assert not _alive(pids()[1])
    time.sleep(0.3)
    assert len(pids()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_worker_ends_with_a_server_that_is_killed(sleeper):
    seen, pids = sleeper
    program = f"from moored.service.child import Child; import time; Child('sleeper_module', [{str(seen)!r}]).start()"
    parent = subprocess.Popen([sys.executable, "-c", program + "; time.sleep(600)"])
    _wait(lambda: len(pids()) == 1)
    parent.kill()
    parent.wait()
    _wait(lambda: not _alive(pids()[0]), 10)


def test_a_launcher_that_is_not_there_is_said_before_anything_starts(tmp_path, capsys):
    options = ["--launcher-option", "address=http://127.0.0.1:9"]
    assert main(["serve", "--home", str(tmp_path / "home"), "--launcher", "ray", *options]) == 2
    assert "no Ray cluster answers at http://127.0.0.1:9" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "home").exists()


def test_the_worker_is_told_what_the_launcher_is_asked_for(tmp_path):
    settings = serve.settings_of(home=tmp_path, launcher="ray", launcher_options={"gpus": "1", "python": "/a b/python"})
    words = serve._worker(settings)._command
    assert words[words.index("--launcher") + 1] == "ray"
    assert {"--launcher-option=gpus=1", "--launcher-option=python=/a b/python"} <= set(words)


def test_a_database_with_a_password_is_not_among_the_arguments(tmp_path):
    url = "postgresql+psycopg://moored:secret@127.0.0.1/moored"
    worker = serve._worker(serve.settings_of(home=tmp_path, database=url))
    assert "secret" not in " ".join(worker._command)
    with patch.dict(os.environ, worker._environment):
        assert serve.settings_of(home=tmp_path).database_url == url
