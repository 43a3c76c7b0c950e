# SPDX-License-Identifier: Apache-2.0
"""Files and uploads, through the real client and against hostile ones."""

import hashlib
import io
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from fastapi.testclient import TestClient

from moored.service import clock, expiry, files
from moored.service.database import File, Part
from moored.service.identity import set_limits

BOTH = pytest.mark.parametrize("settings", ["sqlite", "postgres"], indirect=True)

ROW = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}\n'


@pytest.fixture
def later(monkeypatch):
    """Moves the clock of the service on."""

    def move(seconds):
        moment = clock.now() + seconds
        for module in (files, expiry, __import__("moored.service.uploads", fromlist=["now"])):
            monkeypatch.setattr(module, "now", lambda: moment)

    return move


def _age(blobs, seconds):
    """Make everything stored older than a transaction may last."""
    for sha256 in blobs.every():
        then = time.time() - seconds
        os.utime(blobs.path(sha256), (then, then))


def _incoming(parts):
    return list((parts.blobs.root / "incoming").iterdir())


@BOTH
def test_the_client_uploads_lists_reads_and_deletes(server):
    client = server.client()
    made = client.files.create(file=("rows.jsonl", ROW * 10), purpose="fine-tune")
    assert (made.object, made.filename, made.bytes, made.status) == ("file", "rows.jsonl", len(ROW) * 10, "processed")
    assert made.expires_at is None
    assert client.files.wait_for_processing(made.id).id == made.id
    assert client.files.retrieve(made.id) == made
    answer = client.files.content(made.id)
    assert answer.content == ROW * 10
    assert answer.response.headers["content-disposition"].startswith("attachment")
    assert [file.id for file in client.files.list()] == [made.id]
    gone = client.files.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "file")
    with pytest.raises(openai.NotFoundError, match=f"No such File object: {made.id}"):
        client.files.content(made.id)


@BOTH
def test_pages_are_complete_in_both_orders_and_by_purpose(server):
    client = server.client()
    made = [client.files.create(file=(f"{n}", b"%d" % n), purpose="batch").id for n in range(7)]
    other = client.files.create(file=("x", b"x"), purpose="evals").id
    for order in ("asc", "desc"):
        found = [file.id for file in client.files.list(limit=2, order=order)]
        assert len(found) == 8
        assert set(found) == {*made, other}
    asc = [file.id for file in client.files.list(limit=3, order="asc")]
    assert asc == [file.id for file in client.files.list(limit=3, order="desc")][::-1]
    assert {file.id for file in client.files.list(limit=3, purpose="batch")} == set(made)
    page = client.files.list(limit=8)
    assert page.has_more is False
    assert client.files.list(limit=7).has_more is True
    with pytest.raises(openai.BadRequestError) as wrong:
        client.files.list(after="file-nothing")
    assert wrong.value.param == "after"


@BOTH
def test_a_file_expires(server, later):
    client, parts = server.client(), server.parts
    made = client.files.create(
        file=("a", b"abc"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    later(3590)
    assert client.files.retrieve(made.id).id == made.id
    later(3610)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert client.files.list().data == []
    _age(parts.blobs, 100)
    assert expiry.sweep(parts.database, parts.blobs) == 1
    assert list(parts.blobs.every()) == []
    with parts.database.reading() as session:
        assert session.get(File, made.id) is None


@pytest.mark.parametrize("after", [{"anchor": "created_at", "seconds": 3599}, {"anchor": "made", "seconds": 3600}])
def test_a_life_out_of_bounds_is_refused(server, after):
    with pytest.raises(openai.BadRequestError, match="expires_after") as wrong:
        server.client().files.create(file=("a", b"abc"), purpose="batch", expires_after=after)
    assert wrong.value.param.startswith("expires_after[")


@BOTH
def test_bytes_go_with_the_last_file_that_has_them(server):
    one, two, blobs = server.client(), server.client(server.other_key), server.parts.blobs
    first = one.files.create(file=("a", b"same"), purpose="batch").id
    second = two.files.create(file=("b", b"same"), purpose="batch").id
    _age(blobs, 100)
    assert len(list(blobs.every())) == 1
    one.files.delete(first)
    assert two.files.content(second).content == b"same"
    two.files.delete(second)
    assert list(blobs.every()) == []


def test_fresh_bytes_stay_for_who_is_just_promising_them(server):
    client, parts = server.client(), server.parts
    made = client.files.create(file=("a", b"same"), purpose="batch").id
    with parts.blobs.incoming(10) as coming:
        coming.write(b"same")
        sha256 = coming.keep()  # its row is not there yet
        client.files.delete(made)
        with parts.blobs.open(sha256, verify=True) as stream:
            assert stream.read() == b"same"
    _age(parts.blobs, 100)
    expiry.sweep(parts.database, parts.blobs)
    assert list(parts.blobs.every()) == []


@pytest.mark.parametrize("purpose", ["fine-tune-results", "anything", "", "Fine-Tune"])
def test_only_known_purposes(server, purpose):
    with pytest.raises(openai.BadRequestError, match="is not one of") as wrong:
        server.client().files.create(file=("a", b"abc"), purpose=purpose)
    assert wrong.value.param == "purpose"
    assert _incoming(server.parts) == []


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\windows\\system.ini", "system.ini"),
        ("C:\\rows.jsonl", "rows.jsonl"),
        ("Zeilen für Öl 行.jsonl", "Zeilen für Öl 行.jsonl"),
        ('quo"te; filename=x.txt', "quo%22te; filename=x.txt"),  # as every client writes a quote in a form
    ],
)
def test_a_name_is_only_a_name(server, sent, kept):
    client = server.client()
    made = client.files.create(file=(sent, b"abc"), purpose="batch")
    assert made.filename == kept
    assert client.files.content(made.id).content == b"abc"
    stored = {path.name for path in server.parts.settings.home.rglob("*")}
    assert kept not in stored


@pytest.mark.parametrize("sent", ["..", "a/..", "a\u202ecod.exe", "a\x7fb", "a\u2028b", "x" * 256, " ", "a\x85"])
def test_names_that_lie_are_refused(app, keys, sent):
    with pytest.raises(files.wrong("").__class__) as wrong:
        files.checked_name(sent)
    assert wrong.value.status == 400
    with TestClient(app, headers={"Authorization": f"Bearer {keys[0]}"}) as client:
        answer = client.post(
            "/v1/uploads", json={"filename": sent, "purpose": "batch", "bytes": 1, "mime_type": "text/plain"}
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "filename"


def _form(*parts, boundary=b"b"):
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    return body + b"--" + boundary + b"--\r\n"


FILE = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
PURPOSE = b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (_form(PURPOSE), "'file'"),
        (_form(FILE), "'purpose'"),
        (_form(FILE, FILE, PURPOSE), "given twice"),
        (_form(FILE, PURPOSE, PURPOSE), "given twice"),
        (_form(FILE, PURPOSE)[:-8], "ends too early"),
        (b"", "ends too early"),
        (b"not a form", "multipart/form-data"),
        (_form(PURPOSE, b'Content-Disposition: form-data; name="file"\r\n\r\nabc'), "Expected a file"),
        (_form(FILE, b'Content-Disposition: form-data; name="purpose"\r\n\r\n\xff\xfe'), "not UTF-8"),
        (_form(b'Content-Disposition: form-data; name="file"; filename="\xff"\r\n\r\nabc', PURPOSE), "not UTF-8"),
        (_form(b'Content-Disposition: form-data; name="file"; filename="a\x00b"\r\n\r\nabc', PURPOSE), "400"),
        (_form(FILE, PURPOSE, b"Content-Disposition: form-data\r\n\r\nabc"), "no name"),
        (_form(FILE, PURPOSE, b'Content-Disposition: form-data; name="more"\r\n\r\nabc'), "Unknown parameter: 'more'"),
        (
            _form(*(b'Content-Disposition: form-data; name="%d"\r\n\r\nx' % n for n in range(10_000))),
            "more than 16 fields",
        ),
        (_form(FILE, b'Content-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 9000), "longer than"),
        (_form(b"X: " + b"x" * 9000 + b"\r\n" + FILE, PURPOSE), "multipart/form-data"),
        (_form(b"X: x\r\n" * 50 + FILE, PURPOSE), "multipart/form-data"),
    ],
)
def test_forms_that_are_wrong(app, keys, body, said):
    headers = {"Authorization": f"Bearer {keys[0]}", "content-type": "multipart/form-data; boundary=b"}
    with TestClient(app, headers=headers) as client:
        answer = client.post("/v1/files", content=body)
        assert answer.status_code == 400
        assert said == "400" or said in answer.json()["error"]["message"]
        assert client.get("/v1/files").json()["data"] == []
    assert _incoming(app.state.parts) == []


def test_a_file_over_the_limit_is_cut_off_before_it_is_sent(server):
    """The client hears 413 and does not send the rest."""
    set_limits(server.parts.database, "one", {"file_bytes": 1 << 20})

    class Counting(io.BytesIO):
        sent = 0

        def read(self, size=-1):
            data = super().read(size)
            Counting.sent += len(data)
            return data

    client = server.client()
    client.files.create(file=("a", b"x" * (1 << 20)), purpose="batch")
    with pytest.raises(openai.APIStatusError) as wrong:
        client.files.create(file=("a", b"x" * ((1 << 20) + 1)), purpose="batch")
    assert wrong.value.status_code == 413
    assert wrong.value.body["message"].startswith("The file is too large: at most 1,048,576 bytes")
    with pytest.raises(openai.APIStatusError) as wrong:
        client.files.create(file=("a", Counting(b"x" * (64 << 20))), purpose="batch")
    assert wrong.value.status_code == 413
    assert _incoming(server.parts) == []


def test_a_body_without_a_length_is_cut_off_while_it_comes(server):
    """A gigabyte in chunks: the server stops reading at its limit, and nothing of it is left."""
    set_limits(server.parts.database, "one", {"file_bytes": 1 << 20})
    host, port = server.root.removeprefix("http://").split(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    piece = b"x" * 65536
    start = b"--b\r\n" + FILE
    sent = 0
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(start), start))
        try:
            while sent < 1 << 30:
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
        except OSError:
            pass
    assert sent < 64 << 20
    assert _incoming(server.parts) == []


def test_json_is_cut_off_too(app, keys):
    with TestClient(app, headers={"Authorization": f"Bearer {keys[0]}"}) as client:
        answer = client.post("/v1/uploads", content=b" " * (5 << 20), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["message"].startswith("The request is too large")


def test_who_goes_away_leaves_nothing(server):
    host, port = server.root.removeprefix("http://").split(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000000\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode() + b"--b\r\n" + FILE + b"x" * 3_000_000)
        until = time.monotonic() + 10
        while not _incoming(server.parts) and time.monotonic() < until:
            time.sleep(0.01)
        assert len(_incoming(server.parts)) == 1
    until = time.monotonic() + 10
    while _incoming(server.parts) and time.monotonic() < until:
        time.sleep(0.01)
    assert _incoming(server.parts) == []
    assert server.client().files.list().data == []


@BOTH
def test_storage_is_limited_also_for_racers(server):
    set_limits(server.parts.database, "one", {"storage_bytes": 1000})

    def upload(n):
        try:
            return server.client().files.create(file=(f"{n}", os.urandom(300)), purpose="batch").id
        except openai.RateLimitError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [name for name in pool.map(upload, range(12)) if name]
    assert len(made) == 3
    with pytest.raises(openai.RateLimitError) as full:
        server.client().files.create(file=("a", b"x" * 200), purpose="batch")
    assert full.value.code == "insufficient_quota"
    assert full.value.response.headers["x-should-retry"] == "false"
    server.client(server.other_key).files.create(file=("a", b"x" * 1000), purpose="batch")


def test_a_training_file_is_checked(server, monkeypatch):
    """The seam to the dialect: its first complaint is what the client hears."""
    from types import SimpleNamespace

    def check(path, *, limits, name):
        assert limits.rows
        assert name == "a.jsonl"
        assert path.read_bytes() == b"wrong"
        return [
            SimpleNamespace(line=1, message="Invalid file format. Line 1.", code="invalid_training_file"),
            SimpleNamespace(line=2, message="no", code="no"),
        ]

    monkeypatch.setattr(files.dialect, "check", check)
    with pytest.raises(openai.BadRequestError, match="Invalid file format. Line 1.") as wrong:
        server.client().files.create(file=("a.jsonl", b"wrong"), purpose="fine-tune")
    assert (wrong.value.param, wrong.value.code) == ("file", "invalid_training_file")
    assert server.client().files.list().data == []
    assert _incoming(server.parts) == []
    server.client().files.create(file=("a.jsonl", b"wrong"), purpose="batch")  # nobody trains on it


@BOTH
def test_two_projects_never_meet(server):
    """They race on the same names and contents; each sees its own, and the other's ids are no ids."""
    clients = {"one": server.client(), "two": server.client(server.other_key)}
    made = {"one": [], "two": []}

    def work(who):
        client = clients[who]
        for n in range(8):
            name = client.files.create(file=(f"same{n}", b"same%d" % n), purpose="batch").id
            made[who].append(name)
            assert client.files.content(name).content == b"same%d" % n
            if n % 3 == 0:
                client.files.delete(name)
                made[who].remove(name)

    threads = [threading.Thread(target=work, args=(who,)) for who in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for who, other in (("one", "two"), ("two", "one")):
        assert {file.id for file in clients[who].files.list(limit=3)} == set(made[who])
        assert len(made[who]) == 5
        theirs = made[other][0]
        for call in (clients[who].files.retrieve, clients[who].files.content, clients[who].files.delete):
            with pytest.raises(openai.NotFoundError) as foreign:
                call(theirs)
            with pytest.raises(openai.NotFoundError) as absent:
                call("file-" + "a" * 24)
            assert foreign.value.message.replace(theirs, "X") == absent.value.message.replace("file-" + "a" * 24, "X")
            assert foreign.value.body == absent.value.body | {"message": foreign.value.body["message"]}
        with pytest.raises(openai.BadRequestError):
            clients[who].files.list(after=theirs)
        assert clients[other].files.content(theirs).content.startswith(b"same")


def _uploaded(client, pieces, **more):
    size = sum(map(len, pieces))
    upload = client.uploads.create(bytes=size, filename="big.jsonl", mime_type="text/jsonl", purpose="batch", **more)
    return upload, [client.uploads.parts.create(upload.id, data=piece).id for piece in pieces]


@BOTH
def test_an_upload_in_parts_is_put_together_in_the_order_given(server):
    client = server.client()
    pieces = [os.urandom(3 << 20), os.urandom(1 << 20), b"end"]
    upload, parts = _uploaded(client, pieces, expires_after={"anchor": "created_at", "seconds": 4000})
    assert (upload.status, upload.object) == ("pending", "upload")
    order = [2, 0, 1]
    whole = b"".join(pieces[n] for n in order)
    done = client.uploads.complete(upload.id, part_ids=[parts[n] for n in order], md5=hashlib.md5(whole).hexdigest())
    assert (done.status, done.file.bytes, done.file.filename) == ("completed", len(whole), "big.jsonl")
    assert done.file.expires_at == done.file.created_at + 4000
    assert client.files.content(done.file.id).content == whole
    with server.parts.database.reading() as session:
        assert session.query(Part).count() == 0
    _age(server.parts.blobs, 100)
    expiry.sweep(server.parts.database, server.parts.blobs)
    assert list(server.parts.blobs.every()) == [hashlib.sha256(whole).hexdigest()]
    with pytest.raises(openai.BadRequestError, match=f"completed; its file is {done.file.id}"):
        client.uploads.complete(upload.id, part_ids=parts)


def test_the_clients_own_chunked_upload(server, tmp_path):
    big = tmp_path / "big.jsonl"
    big.write_bytes(ROW * 1000)
    done = server.client().uploads.upload_file_chunked(
        file=big, mime_type="text/jsonl", purpose="fine-tune", part_size=30_000
    )
    assert done.file.bytes == len(ROW) * 1000
    assert server.client().files.content(done.file.id).content == ROW * 1000


def test_what_can_be_wrong_with_an_upload(server):
    client, other = server.client(), server.client(server.other_key)
    upload, parts = _uploaded(client, [b"abc", b"def"])
    wrong = openai.BadRequestError
    with pytest.raises(wrong, match="MD5"):
        client.uploads.complete(upload.id, part_ids=parts, md5="0" * 32)
    with pytest.raises(wrong, match="announced 6"):
        client.uploads.complete(upload.id, part_ids=parts[:1])
    with pytest.raises(wrong, match="No such Part"):
        client.uploads.complete(upload.id, part_ids=["part-x", *parts])
    with pytest.raises(wrong, match="named twice"):
        client.uploads.complete(upload.id, part_ids=[*parts, parts[0]])
    with pytest.raises(wrong, match="announced"):
        client.uploads.parts.create(upload.id, data=b"g")
    for call in (
        lambda: other.uploads.complete(upload.id, part_ids=parts),
        lambda: other.uploads.cancel(upload.id),
        lambda: other.uploads.parts.create(upload.id, data=b"g"),
    ):
        with pytest.raises(openai.NotFoundError, match="No such Upload object"):
            call()
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(wrong, match="is cancelled"):
        client.uploads.complete(upload.id, part_ids=parts)
    with pytest.raises(wrong, match="at most"):
        client.uploads.create(bytes=9 << 30, filename="a", mime_type="x", purpose="batch")
    with pytest.raises(wrong, match="is not one of"):
        client.uploads.create(bytes=9, filename="a", mime_type="x", purpose="fine-tune-results")
    assert client.files.list().data == []


@BOTH
def test_an_upload_is_completed_once_however_many_try(server):
    client = server.client()
    upload, parts = _uploaded(client, [b"abc" * 1000])

    def complete(_):
        try:
            return server.client().uploads.complete(upload.id, part_ids=parts).file.id
        except openai.BadRequestError:
            return None

    with ThreadPoolExecutor(6) as pool:
        made = [name for name in pool.map(complete, range(6)) if name]
    assert len(made) == 1
    assert [file.id for file in client.files.list()] == made
    assert client.files.content(made[0]).content == b"abc" * 1000


@BOTH
def test_an_upload_expires_and_gives_its_room_back(server, later):
    set_limits(server.parts.database, "one", {"storage_bytes": 1000})
    client = server.client()
    upload, parts = _uploaded(client, [b"x" * 800])
    with pytest.raises(openai.RateLimitError):
        client.files.create(file=("a", b"y" * 300), purpose="batch")
    later(3601)
    with pytest.raises(openai.BadRequestError, match="is expired"):
        client.uploads.complete(upload.id, part_ids=parts)
    _age(server.parts.blobs, 100)
    assert expiry.sweep(server.parts.database, server.parts.blobs) == 1
    assert list(server.parts.blobs.every()) == []
    client.files.create(file=("a", b"y" * 300), purpose="batch")
