# SPDX-License-Identifier: Apache-2.0
"""The audit log: `audit.jsonl`, to which lines are only ever added, each bound to the one before it.

A line is canonical JSON with the hash of the line before and its own. Beside it stands `audit.head`: a signed note of
the last line and of the size of the log, so that a cut tail is noticed. The head is renamed into place *before* its
line is added, and holds that line: after a crash in between, the next `append` (and nothing else) finishes the line,
and says so in a line of its own.

What this cannot do: somebody who has the signing key can write another log, and somebody who can put back an older copy
of the whole home takes the end away without a trace. Against both, keep heads elsewhere: every report card holds the
head of its time, and `verify(anchors=...)` looks for it in the log.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from moored.errors import ConfigError, DataError, MooredError, require
from moored.service.clock import now
from moored.service.durable import sync
from moored.service.signing import KEY, SigningKey, canonical, holds, read_json

LOG, HEAD, LOCK, PUBLIC = "audit.jsonl", "audit.head", "audit.lock", "signing.pub"
REPAIRED = "audit_log.repaired"
"""The action of the line that reports a crash."""
MOST_BYTES = 64 << 10
"""Of one line."""
_START = "0" * 64
_FIELDS = ("seq", "at", "actor", "action", "subject", "details", "previous")
_SECRET_NAME = re.compile(r"(?i)(^|[_-])(secret|password|passwd|token|authorization|api[_-]?key|private[_-]?key)$")
_SECRET_TEXT = re.compile(r"sk-[A-Za-z0-9_-]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY|(?i:bearer\s+[\w.-]{16,})")

Break = Literal["", "changed", "removed", "inserted", "reordered", "truncated", "torn", "head", "missing"]


class AuditLogBroken(MooredError):
    """The log is not what was written to it; nothing more is added until somebody has looked."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The end of the log.

    Args:
        seq: number of the last line, from 1; 0 of an empty log.
        hash: of the last line.
        size: of the log [bytes].
        line: the last line itself.
    """

    seq: int = 0
    hash: str = _START
    size: int = 0
    line: str = ""

    def plain(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"seq": self.seq, "hash": self.hash, "size": self.size, "line": self.line}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the log is what was written to it.

    Args:
        kind: what is wrong first; "" if nothing. "torn": a crash, which the next line repairs, and no tampering.
        line: the first line that is not right, from 1; None if it cannot be said.
        entries: whole lines up to there.
        sentence: for people.
        head: of the log as it is.
    """

    kind: Break
    line: int | None
    entries: int
    sentence: str
    head: Head

    @property
    def ok(self) -> bool:
        """Whether every line is as it was written, and none is missing."""
        return not self.kind


def append(
    home: Path, actor: str, action: str, subject: str, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Add a line; when this returns, it is on the disk.

    Args:
        home: of the server.
        actor: who: "key:<id of the key>", "os:<user of the machine>" or "server".
        action: what, for example "job.override".
        subject: the id of what it was done to.
        details: plain JSON; no secret.

    Returns:
        The entry as written.

    Raises:
        ConfigError: something in it looks like a secret, or it is too long.
        DataError: the details are no JSON.
        AuditLogBroken: the log was changed since its last line.
    """
    entry = {"at": now(), "actor": actor, "action": action, "subject": subject, "details": dict(details or {})}
    _check(entry)
    home.mkdir(parents=True, exist_ok=True)
    key = SigningKey.of(home)
    with FileLock(home / LOCK):
        head, missing = _recovered(home, key)
        if missing:
            said = {"bytes": missing, "line": head.seq}
            head, _ = _add(
                home, key, head, {**entry, "actor": "server", "action": REPAIRED, "subject": LOG, "details": said}
            )
        _, made = _add(home, key, head, entry)
    return made


def head(home: Path) -> dict[str, Any]:
    """Number and hash of the last line: what to keep elsewhere. `{"seq": 0, ...}` of an empty log."""
    found = _read_head(home, SigningKey.of(home).public)
    return {"seq": found.seq, "hash": found.hash}


def entries(home: Path) -> Iterator[dict[str, Any]]:
    """The entries, oldest first, as far as they can be read; `verify` says whether they can be believed.

    Raises:
        DataError: a line is no JSON object; names it.
    """
    for number, line in enumerate(_lines(home / LOG), 1):
        if not line.endswith(b"\n"):
            return
        found = read_json(line)
        if not isinstance(found, dict):
            raise DataError(f"{LOG}, line {number}: not an entry")
        yield found


def verify(home: Path, *, public: str = "", anchors: Sequence[Mapping[str, Any]] = ()) -> Verdict:
    """Read the whole log and say whether it is what was written.

    Args:
        home: of the server, or a folder with an exported log and its head.
        public: the key that signed the head, in base64; "" = that of the home.
        anchors: heads that were kept elsewhere (`head`, or `audit_log` of a report card), which must be in the log.

    Raises:
        ConfigError: there is neither a key in the home nor a `public` one.
    """
    if not public:
        if not (home / KEY).is_file():
            raise ConfigError(f"{home} has no {KEY}: is it the home of a server? Else give the public key")
        public = SigningKey.of(home).public
    require(home.is_dir(), "verify", "home", "a folder that exists", str(home))
    with FileLock(home / LOCK):  # only for the size and the head of the same moment; lines are never changed later
        size = _size(home / LOG)
        try:
            end = _read_head(home, public)
        except AuditLogBroken as error:
            return Verdict(kind="head", line=None, entries=0, sentence=f"{error}.", head=Head())
    return _verdict(home / LOG, size, end, anchors)


def export(home: Path, folder: Path) -> list[Path]:
    """Copy the log, its head and the public key into a folder, where `verify` can read them without the private key.

    Returns:
        The files.

    Raises:
        ConfigError: the folder holds a log already.
    """
    require(not (folder / LOG).exists(), "export", "folder", f"one without a {LOG}", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(home / LOCK):
        for name in (HEAD, LOG):
            if (home / name).is_file():
                shutil.copyfile(home / name, folder / name)
    (folder / PUBLIC).write_text(SigningKey.of(home).public + "\n", encoding="ascii")
    return [folder / name for name in (LOG, HEAD, PUBLIC) if (folder / name).is_file()]


def _verdict(path: Path, size: int, end: Head, anchors: Sequence[Mapping[str, Any]]) -> Verdict:
    """Walk the chain to its first break."""
    before, hashes = _START, [_START]

    def broken(kind: Break, sentence: str, line: int | None) -> Verdict:
        return Verdict(kind=kind, line=line, entries=len(hashes) - 1, sentence=sentence, head=end)

    if not end.seq and not size:
        return broken("missing", "There is no entry, and a server that has run has some.", None)
    for number, line in enumerate(_lines(path, size), 1):
        if number == end.seq and line != end.line.encode() and end.line.encode().startswith(line):
            break  # a crash: looked at below
        kind = _fault(line, number, before, path)
        if kind:
            return broken(kind, f"Line {number} of {LOG} is not what was written there: {kind}.", number)
        before = read_json(line)["hash"]
        hashes.append(before)
        if number > end.seq:
            return broken("inserted", f"Line {number} of {LOG} is behind the signed end of the log.", number)
    if len(hashes) == end.seq and before == _previous(end):
        part = size - (end.size - len(end.line))
        return broken("torn", f"A crash cut line {end.seq} after {part} bytes; the next entry repairs it.", end.seq)
    if len(hashes) - 1 < end.seq:
        said = f"{LOG} ends after line {len(hashes) - 1}; its signed head is line {end.seq}."
        return broken("truncated", said, len(hashes))
    if before != end.hash or size != end.size:
        return broken("changed", f"The last line of {LOG} is not the one that was signed.", end.seq)
    for anchor in anchors:
        seq, wanted = anchor.get("seq"), anchor.get("hash")
        if not isinstance(seq, int) or not 0 <= seq < len(hashes) or hashes[seq] != wanted:
            kept = f"Line {seq} with the hash {str(wanted)[:16]}..., kept elsewhere, is not in this log."
            return broken("changed", f"{kept} It was written anew, or put back from an older copy.", None)
    return Verdict(
        kind="", line=None, entries=end.seq, sentence=f"All {end.seq} entries are as they were written.", head=end
    )


def _fault(line: bytes, number: int, before: str, path: Path) -> Break:
    """What is wrong with a line in its place; "" if nothing."""
    try:
        entry = read_json(line)
        whole = isinstance(entry, dict) and set(entry) == {*_FIELDS, "hash"} and canonical(entry) + b"\n" == line
        if not whole or _hashed(entry) != entry["hash"] or type(entry["seq"]) is not int:
            return "changed"
    except DataError:
        return "changed"
    if entry["seq"] < number:
        return "inserted"
    if entry["seq"] > number:
        return "reordered" if _stands(path, number) else "removed"
    return "" if entry["previous"] == before else "changed"


def _stands(path: Path, seq: int) -> bool:
    """Whether an entry of this number stands anywhere."""
    for line in _lines(path):
        try:
            found = read_json(line)
        except DataError:
            continue
        if isinstance(found, dict) and found.get("seq") == seq:
            return True
    return False


def _recovered(home: Path, key: SigningKey) -> tuple[Head, int]:
    """The end of the log, and how many bytes of its last line a crash had left out and were added now."""
    end, path = _read_head(home, key.public), home / LOG
    size, line = _size(path), end.line.encode()
    for unfinished in home.glob(f".{HEAD}.*"):
        unfinished.unlink(missing_ok=True)  # of a crash before the head was in place; nobody else holds the lock
    there = b""
    if size:
        with path.open("rb") as file:
            file.seek(max(0, min(size, end.size - len(line))))
            there = file.read(len(line) + 1)
    if size > end.size or size < end.size - len(line) or not line.startswith(there):
        raise AuditLogBroken(
            f"{LOG} does not end where its signed head says, so nothing is added; look with `moored audit-log verify`"
        )
    missing = len(line) - len(there)
    if missing:
        _write(path, line[len(there) :])
    return end, missing


def _add(home: Path, key: SigningKey, end: Head, entry: Mapping[str, Any]) -> tuple[Head, dict[str, Any]]:
    """One line: first the head that promises it, then the line."""
    made = {**entry, "seq": end.seq + 1, "previous": end.hash}
    made["hash"] = _hashed(made)
    line = canonical(made) + b"\n"
    if len(line) > MOST_BYTES:
        raise ConfigError(f"an entry of the audit log has at most {MOST_BYTES} bytes; got {len(line)}")
    new = Head(seq=end.seq + 1, hash=made["hash"], size=end.size + len(line), line=line.decode())
    part = home / f".{HEAD}.{secrets.token_hex(8)}"
    try:
        text = canonical({**new.plain(), "signature": key.sign("audit-head", new.plain())})
        _write(part, text + b"\n")
        part.replace(home / HEAD)
        sync(home)
    finally:
        part.unlink(missing_ok=True)
    _write(home / LOG, line)
    return new, made


def _read_head(home: Path, public: str) -> Head:
    """The signed end of the log; that of an empty one if there is neither log nor head.

    Raises:
        AuditLogBroken: it is missing or was changed.
    """
    try:
        text = (home / HEAD).read_bytes()
    except FileNotFoundError:
        if not _size(home / LOG):
            return Head()
        raise AuditLogBroken(f"{HEAD} is missing beside {LOG}: put it back from a backup of the same time") from None
    try:
        found = read_json(text)
        signature = found.pop("signature")
        good = canonical({**found, "signature": signature}) + b"\n" == text and holds(
            "audit-head", found, signature, public
        )
        if good:
            return Head(**found)
    except (DataError, AttributeError, KeyError, TypeError):
        pass
    raise AuditLogBroken(f"{HEAD} was changed: its signature does not hold")


def _check(entry: Mapping[str, Any]) -> None:
    for name in ("actor", "action", "subject"):
        if not isinstance(entry[name], str) or not entry[name]:
            raise ConfigError(f"`{name}` of an entry of the audit log must be a text; got {entry[name]!r}")
    canonical(entry)
    for path, value in _leaves("", entry):
        named = _SECRET_NAME.search(path.rpartition(".")[2])
        if _SECRET_TEXT.search(path) or (isinstance(value, str) and value and (named or _SECRET_TEXT.search(value))):
            where = "a name" if _SECRET_TEXT.search(path) else f"`{path.lstrip('.')}`"
            raise ConfigError(f"{where} of an entry of the audit log looks like a secret; name keys by their id")


def looks_secret(text: str) -> bool:
    """Whether a text holds something like an API key or a private key."""
    return bool(_SECRET_TEXT.search(text))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{path}.{name}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(path, inner)
    else:
        yield path, value


def _previous(end: Head) -> str:
    return str(read_json(end.line)["previous"]) if end.line else _START


def _hashed(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({name: entry[name] for name in _FIELDS})).hexdigest()


def _lines(path: Path, size: int | None = None) -> Iterator[bytes]:
    """The lines in the first `size` bytes; None: in all."""
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                size = None if size is None else size - len(line)
                if size is not None and size < 0:
                    return
                yield line


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _write(path: Path, data: bytes) -> None:
    """Add bytes to the end of a file, on the disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
