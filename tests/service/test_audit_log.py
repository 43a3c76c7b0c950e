# SPDX-License-Identifier: Apache-2.0
"""The audit log: whatever is done to its bytes is found, and a crash loses nothing."""

import json
import multiprocessing
import shutil
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moored.cli import main
from moored.errors import ConfigError
from moored.service import audit_log
from moored.service.audit_log import AuditLogBroken, append, entries, export, head, verify
from moored.service.signing import SigningKey

LINES = 5
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for i in range(LINES):
        append(home, f"key:key-{i}", "job.create", f"ftjob-{i}", {"model": "tiny", "n": i, "reason": "because ü"})
    return home


@pytest.fixture
def home(written, tmp_path):
    """A copy, to be spoilt."""
    return _copy(written, tmp_path / "home")


def _copy(home, to):
    shutil.rmtree(to, ignore_errors=True)
    return shutil.copytree(home, to)


def _lines(home):
    return (home / audit_log.LOG).read_bytes().splitlines(keepends=True)


def _put(home, lines):
    (home / audit_log.LOG).write_bytes(b"".join(lines))


def test_what_was_written_is_there_and_holds(home):
    found = verify(home)
    assert found.ok
    assert found.entries == LINES
    assert [entry["subject"] for entry in entries(home)] == [f"ftjob-{i}" for i in range(LINES)]
    assert head(home) == {"seq": LINES, "hash": list(entries(home))[-1]["hash"]}
    assert (home / audit_log.LOG).stat().st_mode & 0o077 == 0


@quick
@given(data=st.data())
def test_any_changed_byte_is_found(written, tmp_path, data):
    home = _copy(written, tmp_path / "spoilt")
    path = home / data.draw(st.sampled_from([audit_log.LOG, audit_log.HEAD]))
    raw = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(raw) - 1))
    raw[where] = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[where]))
    path.write_bytes(raw)
    found = verify(home)
    assert not found.ok
    if path.name == audit_log.LOG and found.line is not None:
        assert found.line == 1 + written.joinpath(audit_log.LOG).read_bytes()[:where].count(b"\n")


@quick
@given(data=st.data())
def test_any_cut_is_found(written, tmp_path, data):
    home = _copy(written, tmp_path / "spoilt")
    raw = (home / audit_log.LOG).read_bytes()
    at = data.draw(st.integers(0, len(raw) - 1))
    (home / audit_log.LOG).write_bytes(raw[:at])
    found = verify(home)
    last = len(raw) - len(_lines(written)[-1])
    assert found.kind == ("torn" if at >= last else "truncated" if raw[:at].endswith(b"\n") or not at else "changed")
    if at < last:
        with pytest.raises(AuditLogBroken):
            append(home, "server", "job.create", "ftjob-x")


@pytest.mark.parametrize(
    ("spoil", "kind", "line"),
    [
        (lambda lines: lines[:1] + lines[2:], "removed", 2),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "reordered", 2),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "inserted", 3),
        (lambda lines: [*lines, b"{}\n"], "changed", LINES + 1),
        (lambda lines: lines[:-2], "truncated", LINES - 1),
        (lambda lines: lines[:-1] + [lines[-1].rstrip(b"\n")], "torn", LINES),
        (lambda _: [], "truncated", 1),
    ],
)
def test_what_was_done_is_named(home, spoil, kind, line):
    _put(home, spoil(_lines(home)))
    found = verify(home)
    assert (found.kind, found.line) == (kind, line)


def test_a_forged_line_with_a_good_hash_is_found(home):
    """Somebody who knows the format, but has not the key."""
    lines = _lines(home)
    forged = json.loads(lines[1])
    forged["details"] = {"n": 99}
    forged["hash"] = audit_log._hashed(forged)
    inserted = [lines[0], audit_log.canonical(forged) + b"\n", *lines[1:]]
    _put(home, inserted)
    assert verify(home).kind == "inserted"
    _put(home, [lines[0], inserted[1], *lines[2:]])
    assert (verify(home).kind, verify(home).line) == ("changed", 3)  # which does not fit the forged one
    last = json.loads(lines[-1])
    last["details"] = {}
    last["hash"] = audit_log._hashed(last)
    _put(home, [*lines[:-1], audit_log.canonical(last) + b"\n"])
    assert not verify(home).ok
    after = {**last, "seq": LINES + 1, "previous": json.loads(lines[-1])["hash"]}
    after["hash"] = audit_log._hashed(after)
    _put(home, [*lines, audit_log.canonical(after) + b"\n"])
    assert verify(home).kind == "inserted"
    with pytest.raises(AuditLogBroken):
        append(home, "server", "job.create", "ftjob-x")


def test_a_missing_log_or_head_is_found(home):
    kept = (home / audit_log.HEAD).read_bytes()
    (home / audit_log.HEAD).unlink()
    assert verify(home).kind == "head"
    with pytest.raises(AuditLogBroken):
        append(home, "server", "job.create", "ftjob-x")
    (home / audit_log.LOG).unlink()
    assert verify(home).kind == "missing"
    (home / audit_log.HEAD).write_bytes(kept)
    assert verify(home).kind == "truncated"


def test_a_head_kept_elsewhere_finds_an_old_copy_put_back(home, tmp_path):
    old = _copy(home, tmp_path / "old")
    append(home, "key:key-9", "job.override", "ftjob-1")
    kept = head(home)
    assert verify(home, anchors=[kept]).ok
    assert verify(old).ok  # by itself it is whole
    assert not verify(old, anchors=[kept]).ok
    append(old, "key:key-9", "job.create", "ftjob-2")
    assert "is not in this log" in verify(old, anchors=[kept]).sentence


@pytest.mark.parametrize("part", range(0, 400, 37))
def test_a_crash_loses_no_entry_and_is_reported(home, part, monkeypatch):
    """Killed after the head and `part` bytes of the line."""
    write = audit_log._write

    def torn(path, data):
        if path.name == audit_log.LOG:
            write(path, data[:part])
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(audit_log, "_write", torn)
    with pytest.raises(KeyboardInterrupt):
        append(home, "key:key-7", "job.override", "ftjob-7", {"reason": "x" * 400})
    monkeypatch.undo()
    assert verify(home).kind == "torn"
    append(home, "key:key-8", "job.create", "ftjob-8")
    assert verify(home).ok
    found = list(entries(home))[LINES:]
    assert [entry["action"] for entry in found] == ["job.override", audit_log.REPAIRED, "job.create"]
    assert found[1]["details"]["line"] == LINES + 1


def test_a_crash_before_the_head_leaves_no_trace(home, monkeypatch):
    def killed(path, data):
        path.write_bytes(data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(audit_log, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        append(home, "server", "job.create", "ftjob-7")
    monkeypatch.undo()
    assert verify(home).ok
    append(home, "server", "job.create", "ftjob-8")
    assert verify(home).entries == LINES + 1
    assert not list(home.glob(".audit*"))


def _many(home, who):
    for i in range(10):
        append(home, who, "job.create", f"ftjob-{i}")


def test_processes_and_threads_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    at_once = [context.Process(target=_many, args=(tmp_path, f"key:p{i}")) for i in range(3)]
    at_once += [threading.Thread(target=_many, args=(tmp_path, f"key:t{i}")) for i in range(3)]
    for one in at_once:
        one.start()
    for one in at_once:
        one.join()
    assert verify(tmp_path).ok
    assert verify(tmp_path).entries == 60


def _for_ever(home, done):
    for i in range(10_000):
        append(home, "server", "job.create", f"ftjob-{i}", {"x": "y" * 3000})
        done.value = i + 1


def test_killed_at_any_moment_it_keeps_every_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    written = 0
    for pause in (0.013, 0.031, 0.07, 0.11):
        done = context.Value("i", 0)
        process = context.Process(target=_for_ever, args=(tmp_path, done))
        process.start()
        while not done.value:
            time.sleep(0.002)
        time.sleep(pause)
        process.kill()
        process.join()
        written += done.value
        assert verify(tmp_path).kind in ("", "torn")
        append(tmp_path, "server", "server.start", "server")
        assert verify(tmp_path).ok
        created = sum(entry["action"] == "job.create" for entry in entries(tmp_path))
        assert created - written in (0, 1)  # one may have been written whose writer could not say so any more
        written = created


@pytest.mark.parametrize(
    "details",
    [
        {"key": "sk-moored-" + "x" * 43},
        {"note": ["see sk-moored-" + "x" * 43]},
        {"a": {"password": "hunter2"}},
        {"Authorization": "anything"},
        {"sk-moored-" + "x" * 43: 1},
        {"pem": "-----BEGIN PRIVATE KEY-----"},
    ],
)
def test_secrets_are_not_written_nor_repeated(home, details):
    with pytest.raises(ConfigError) as caught:
        append(home, "server", "key.create", "key-1", details)
    assert "x" * 43 not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert verify(home).entries == LINES


def test_numbers_of_tokens_are_no_secret(home):
    append(home, "server", "job.done", "ftjob-1", {"trained_tokens": 5, "key_id": "key-1", "token": ""})
    with pytest.raises(ConfigError, match="at most"):
        append(home, "server", "job.done", "ftjob-1", {"x": "y" * 70_000})


def test_the_command(home, tmp_path, capsys):
    assert main(["audit-log", "verify", "--home", str(home)]) == 0
    assert "All 5 entries" in capsys.readouterr().out
    assert main(["audit-log", "show", "--home", str(home), "--last", "2"]) == 0
    shown = capsys.readouterr().out
    assert "ftjob-4" in shown
    assert "ftjob-2" not in shown
    away = tmp_path / "away"
    assert main(["audit-log", "export", "--home", str(home), "--out", str(away)]) == 0
    kept = head(home)
    public = SigningKey.of(home).public
    capsys.readouterr()
    assert not (away / "signing.key").exists()
    exported = ["audit-log", "verify", "--home", str(away), "--key", public]
    assert main([*exported, "--head", f"{kept['seq']}:{kept['hash']}"]) == 0
    assert main([*exported, "--head", f"{kept['seq']}:{'0' * 64}"]) == 3
    _put(away, _lines(away)[1:])
    assert main(exported) == 3
    assert "Line 1" in capsys.readouterr().err
    assert main(["audit-log", "verify", "--home", str(away)]) == 2
    assert main(["audit-log", "verify", "--home", str(tmp_path / "nowhere")]) == 2
    with pytest.raises(ConfigError):
        export(home, away)
