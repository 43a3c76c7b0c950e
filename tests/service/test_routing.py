# SPDX-License-Identifier: Apache-2.0
"""Routes that do their work in one thread: who is calling is found there, and nothing is answered before."""

import json
import threading
from dataclasses import replace

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from moored.service.identity import set_limits
from moored.service.parts import Who
from moored.service.quota import Rates
from moored.service.routing import Json, Late, Route


@pytest.fixture
def client(app):
    return TestClient(app, raise_server_exceptions=False)


def test_every_route_of_the_server_is_one(app):
    others = {route.path for route in app.routes if not isinstance(route, Route)}
    assert others == {"/openapi.json"}


def test_who_may_not_call_hears_that_before_what_else_is_wrong(client, keys):
    assert client.get("/v1/fine_tuning/jobs?limit=0").status_code == 401
    assert client.get("/v1/files?order=up", headers={"authorization": "Bearer sk-moored-no"}).status_code == 401
    answer = client.get("/v1/files?order=up", headers={"authorization": f"Bearer {keys[0]}"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "order"


def test_what_is_asked_wrongly_counts(app, client, keys):
    app.state.parts = replace(app.state.parts, rates=Rates(lambda: 0.0))  # no time goes by
    set_limits(app.state.parts.database, "one", {"requests_per_minute": 2})
    key = {"authorization": f"Bearer {keys[0]}"}
    assert [client.get("/v1/files?limit=0", headers=key).status_code for _ in range(3)] == [400, 400, 429]


def test_the_caller_is_found_in_the_thread_that_answers(app, keys):
    threads = []

    def here(who: Who) -> dict[str, str]:
        threads.append(threading.current_thread())
        return {"project": who.project_id}

    app.router.routes.append(Route("/here", here))
    known = TestClient(app).get("/here", headers={"authorization": f"Bearer {keys[0]}"})
    assert known.json()["project"].startswith("proj")
    assert threads[0] is not threading.main_thread()
    assert TestClient(app).get("/here").status_code == 401
    assert len(threads) == 1


def test_a_route_that_is_not_one_knows_nobody(app):
    plain = FastAPI()
    plain.state.parts = app.state.parts

    @plain.get("/")
    async def show(request: Request, who: Who) -> dict[str, str]:
        assert isinstance(who, Late)
        return {"project": who.project_id}

    assert TestClient(plain, raise_server_exceptions=False).get("/").status_code == 500


def test_numbers_that_are_not_finite_and_lone_surrogates_are_sent():
    assert json.loads(Json({"loss": float("nan")}).body) == {"loss": None}
    assert json.loads(Json({"name": "\ud800"}).body) == {"name": "\ud800"}
