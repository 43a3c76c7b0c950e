# SPDX-License-Identifier: Apache-2.0
"""Whatever the OpenAPI document allows, and much that it does not, never ends in a 5xx or in words of the inside."""

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from moored.service.identity import set_limits

SETTINGS = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
OURS = r"^/(v1/(files|uploads)|healthz|readyz|metrics)"


@pytest.fixture
def client(app, keys):
    set_limits(app.state.parts.database, "one", {"requests_per_minute": 1_000_000})
    headers = {"Authorization": f"Bearer {keys[0]}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_nothing_that_can_be_sent_breaks_it(app, client):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app).include(path_regex=OURS)
    seen, statuses, real = set(), set(), _ids(client)
    for found in schema.get_all_operations():
        operation = found.ok()

        @SETTINGS
        @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE) | _wrong(operation))
        def send(case):
            check(case)
            if given_names := set(case.path_parameters or {}) & set(real):
                case.path_parameters = {name: real[name] for name in given_names}
                check(case)

        def check(case):
            answer = case.call(headers=dict(client.headers))
            statuses.add(answer.status_code)
            assert answer.status_code < 500, answer.text
            assert b"Traceback" not in answer.content
            assert answer.headers["x-request-id"]
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        send()
        seen.add(operation.label)
    assert {"POST /v1/files", "POST /v1/uploads", "GET /v1/files", "DELETE /v1/files/{file_id}"} <= seen
    assert {200, 400, 404} <= statuses


def _ids(client):
    """A file and an upload that exist."""
    new = {"filename": "a", "purpose": "batch", "bytes": 3, "mime_type": "text/plain"}
    file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"abc")})
    return {"file_id": file.json()["id"], "upload_id": client.post("/v1/uploads", json=new).json()["id"]}


def _wrong(operation):
    """What the document forbids, where something can be forbidden."""
    return operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)


def test_every_route_is_documented_and_says_how_it_refuses(client):
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        assert path.startswith("/v1/") or path in ("/healthz", "/readyz", "/metrics") or "v1" not in path
        for method, operation in operations.items():
            assert "422" not in operation["responses"], (method, path)
            assert "4XX" in operation["responses"], (method, path)
            assert operation.get("summary")
    assert {"/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content", "/v1/uploads"} <= set(document["paths"])
