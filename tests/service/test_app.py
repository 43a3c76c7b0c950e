# SPDX-License-Identifier: Apache-2.0
"""Every answer has an id, the client's error shape, and nothing of the server's inside."""

import errno
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastapi.testclient import TestClient
from sqlalchemy.exc import DataError as DatabaseDataError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from moored.errors import ConfigError
from moored.service.app import create_app
from moored.service.database import Base, Database
from moored.service.migrations import upgrade

BOTH = pytest.mark.parametrize("settings", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def client(app, keys):
    with TestClient(app, headers={"Authorization": f"Bearer {keys[0]}"}, raise_server_exceptions=False) as client:
        yield client


def test_importing_the_app_imports_no_torch():
    program = "import sys, moored.service.app; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@BOTH
@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/v1/nothing", 404, "Invalid URL (GET /v1/nothing)"),
        ("PUT", "/v1/files", 405, "Not allowed to PUT on /v1/files."),
        ("GET", "/v1/files/file-x", 404, "No such File object: file-x"),
        ("GET", "/v1/files?limit=0", 400, "Invalid value for 'limit'"),
        ("GET", "/v1/files?limit=ten", 400, "Invalid type for 'limit': expected an integer"),
        ("GET", "/v1/files?order=up", 400, "Invalid value for 'order'"),
        ("GET", "/v1/files?after=file-x", 400, "No item with id 'file-x'"),
        ("GET", "/v1/files/%ff", 404, "No such File object"),
        ("POST", "/v1/files", 400, "multipart/form-data"),
        ("POST", "/v1/uploads", 400, "JSON body"),
    ],
)
def test_refusals_have_the_clients_shape(client, method, path, status, said):
    answer = client.request(method, path)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"].startswith("req_")
    assert int(answer.headers["openai-processing-ms"]) >= 0


@BOTH
def test_an_id_with_a_null_in_it_is_nobodys(client):
    """SQLite looks for it, PostgreSQL refuses to; neither fails."""
    assert client.get("/v1/files/%00").status_code in (400, 404)
    assert client.get("/v1/files?after=%00").status_code == 400
    assert client.get("/v1/files?purpose=%00").status_code in (200, 400)


@BOTH
@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        (b"{", "could not parse the JSON", None),
        (b"[]", "must be an object", None),
        (b'"text"', "must be an object", None),
        (b"[" * 200_000, "nested too deeply", None),
        (b'{"a":' * 200_000, "nested too deeply", None),
        (b"\xff\xfe{}", "could not parse the JSON", None),
        (b'{"bytes": ' + b"9" * 5000 + b"}", "could not parse the JSON", None),
        (b'{"bytes": 1e999, "filename": "a", "purpose": "batch", "mime_type": "x"}', "expected an integer", "bytes"),
        (b'{"bytes": true, "filename": "a", "purpose": "batch", "mime_type": "x"}', "expected an integer", "bytes"),
        (b'{"bytes": 99999999999999999999, "filename": "a", "purpose": "batch", "mime_type": "x"}', "less", "bytes"),
        (b'{"bytes": 1, "filename": "a\\ud800", "purpose": "batch", "mime_type": "x"}', "U+D800", "filename"),
        (b'{"bytes": 1, "filename": "a\\u0000", "purpose": "batch", "mime_type": "x"}', "U+0000", "filename"),
        (b'{"bytes": 1, "filename": "a", "purpose": "batch", "mime_type": "\\ud800"}', "unicode", "mime_type"),
        (b'{"bytes": 1, "filename": 7, "purpose": "batch", "mime_type": "x"}', "a string, but got an int", "filename"),
        (b'{"bytes": 1, "purpose": "batch", "mime_type": "x"}', "Missing required parameter: 'filename'", "filename"),
        (b'{"bytes": 1, "filename": "a", "purpose": "batch", "mime_type": "x", "y": 1}', "Unknown parameter: 'y'", "y"),
        (
            b'{"bytes": 1, "filename": "a", "purpose": "batch", "mime_type": "x", "expires_after": {"anchor": "now"}}',
            "Invalid value for 'expires_after.anchor'",
            "expires_after.anchor",
        ),
    ],
)
def test_json_that_is_wrong_is_refused_with_its_parameter(client, body, said, param):
    answer = client.post("/v1/uploads", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyError("/secret/place"), 500, "request ID req_"),
        (OSError(errno.EIO, "/secret/place"), 500, "request ID req_"),
        (OSError(errno.ENOSPC, "/secret/place"), 507, "disk is full"),
        (OperationalError("select secret", {}, Exception("locked")), 503, "does not answer"),
        (NoConnection("QueuePool limit of size 40 reached: secret"), 503, "does not answer"),
        (DatabaseDataError("select secret", {}, Exception("NUL")), 400, "cannot be stored"),
        (ConfigError("`rho` of Vaccine must be >= 0; got -1.0"), 400, "`rho` of Vaccine"),
        (RecursionError("secret"), 400, "nested too deeply"),
    ],
)
def test_what_fails_inside_stays_inside(client, app, monkeypatch, error, status, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("moored.service.routes.files.files.look", fail)
    answer = client.get("/v1/files/file-x")
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-request-id"]


def test_a_key_is_needed_and_must_be_known(client):
    for headers in ({"Authorization": ""}, {"Authorization": "Basic x"}, {"Authorization": "Bearer sk-moored-no"}):
        answer = client.get("/v1/files", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        assert "sk-moored-no" not in answer.text


def test_a_revoked_key_is_nobodys_at_once(client, app, keys):
    from moored.service.identity import revoke

    assert client.get("/v1/files").status_code == 200
    revoke(app.state.parts.database, keys[0])
    assert client.get("/v1/files").status_code == 401


def test_the_client_maps_the_errors(server):
    with pytest.raises(openai.NotFoundError) as missing:
        server.client().files.retrieve("file-nothing")
    assert missing.value.param == "id"
    assert missing.value.request_id.startswith("req_")
    with pytest.raises(openai.AuthenticationError) as unknown:
        server.client("sk-moored-wrong").files.list()
    assert unknown.value.code == "invalid_api_key"


def _raw(server, text):
    host, port = server.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(text)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: 2, 3\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: +2\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Bad Header: x\r\n",
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_not_read(server, headers):
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = _raw(server, b"POST /v1/uploads HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n{}" + smuggled)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
    assert answer.count(b"HTTP/1.1") == 1
    assert b"ok" not in answer


def test_both_lengths_at_once_are_read_one_way(server):
    """`Transfer-Encoding` wins and the connection ends, so nothing can hide behind the other length."""
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /v1/uploads HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    answer = _raw(server, head + b"Connection: close\r\n\r\n0\r\n\r\n" + smuggled)
    assert answer.count(b"HTTP/1.1") == 1


def test_metrics_count_routes_not_paths(client, app):
    client.get("/v1/files/file-secret")
    client.get("/nowhere/secret")
    text = client.get("/metrics").text
    assert 'moored_requests_total{method="GET",route="/v1/files/{file_id}",status="404"} 1.0' in text
    assert 'moored_requests_total{method="GET",route="(none)",status="404"} 1.0' in text
    assert "secret" not in text
    client.post("/v1/files", data={"purpose": "batch"}, files={"file": b"12345"})
    assert 'moored_file_bytes{purpose="batch"} 5.0' in client.get("/metrics").text


@pytest.mark.parametrize(("host", "headers"), [("0.0.0.0", {}), ("127.0.0.1", {"X-Forwarded-For": "10.1.1.1"})])
def test_metrics_need_an_operator_where_others_can_reach_them(app, keys, monkeypatch, host, headers):
    from dataclasses import replace

    parts = app.state.parts
    app.state.parts = replace(parts, settings=parts.settings.model_copy(update={"host": host}))
    with TestClient(app, headers=headers) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": f"Bearer {keys[0]}"}).status_code == 403
        assert client.get("/metrics", headers={"Authorization": f"Bearer {keys[2]}"}).status_code == 200


def test_ready_says_why_not(client, app):
    assert client.get("/readyz").status_code == 200
    file = app.state.parts.settings.policy_file
    before = app.state.parts.policy().sha256
    file.write_text(file.read_text() + "\n[gaet]\n")
    assert client.get("/readyz").status_code == 503
    assert client.get("/readyz").json()["error"]["message"].startswith("The policy's file")
    assert app.state.parts.policy().sha256 == before  # what could be kept is kept
    file.write_text(file.read_text().replace("[gaet]", "").replace("harmful_score = 10.0", "harmful_score = 9.0"))
    assert client.get("/readyz").status_code == 200
    assert app.state.parts.policy().gate.harmful_score == 9.0


def test_a_wrong_policy_stops_the_start(settings):
    settings.home.mkdir()
    settings.policy_file.write_text("[gaet]")
    with pytest.raises(ConfigError, match="gaet"):
        create_app(settings)


@BOTH
def test_migrated_tables_are_the_mapped_ones(settings):
    settings.home.mkdir()
    database = Database(settings.database_url)
    with ThreadPoolExecutor(3) as pool:  # a server and its workers start together
        list(pool.map(upgrade, [database] * 3))
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    database.close()


def test_a_later_database_is_refused(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/a.sqlite")
    upgrade(database)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="later"):
        upgrade(database)
    database.close()
