# SPDX-License-Identifier: Apache-2.0
"""Endpoint: order, retries, errors that name the place and keep the key."""

import pytest

from chat_server import chat_server
from moored.data.schema import Message
from moored.endpoint import Endpoint
from moored.errors import ConfigError, EndpointError
from moored.sampling import Sampling


def chats(n):
    return [[Message(role="user", content=f"Question {i}")] for i in range(n)]


def echo(body):
    return f" {body['messages'][-1]['content']}! "


def test_answers_come_in_the_order_of_the_chats():
    seen = []
    with chat_server(echo) as (url, requests):
        answers = Endpoint(url=url, model="m").answers(
            chats(20), max_new_tokens=7, progress=lambda *now: seen.append(now)
        )
    assert answers == [f"Question {i}!" for i in range(20)]
    assert seen == [(i, 20, "m") for i in range(1, 21)]
    assert {(r["model"], r["max_tokens"], r["temperature"], r["path"]) for r in requests} == {
        ("m", 7, 0.0, "/v1/chat/completions")
    }


def test_a_silent_model_has_said_nothing():
    with chat_server(lambda body: None) as (url, _):
        assert Endpoint(url=url, model="m").answers(chats(1), max_new_tokens=4) == [""]


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret")
    with chat_server(lambda body: 401) as (url, requests):
        endpoint = Endpoint(url=url, model="m", key="MY_KEY", retries=0)
        with pytest.raises(EndpointError) as caught:
            endpoint.answers(chats(1), max_new_tokens=4)
    assert requests[0]["authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value) + repr(endpoint)


def test_without_a_key_a_local_server_can_still_be_asked(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with chat_server(echo) as (url, _):
        assert Endpoint(url=url, model="m").answers(chats(1), max_new_tokens=4) == ["Question 0!"]


def test_a_full_queue_is_tried_again():
    said = iter([429, 503, "at last"])
    with chat_server(lambda body: next(said)) as (url, requests):
        assert Endpoint(url=url, model="m", retries=2).answers(chats(1), max_new_tokens=4) == ["at last"]
    assert len(requests) == 3


def test_what_stays_wrong_names_model_and_place():
    with (
        chat_server(lambda body: 404) as (url, _),
        pytest.raises(EndpointError, match=rf"^gpt at {url} gives no answer: 404 no such model$"),
    ):
        Endpoint(url=url, model="gpt").answers(chats(3), max_new_tokens=4)


def test_nobody_there():
    with chat_server(echo) as (url, _):
        pass
    with pytest.raises(EndpointError, match=rf"m at {url} gives no answer: Connection error"):
        Endpoint(url=url, model="m", retries=0).answers(chats(1), max_new_tokens=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "`url` of Endpoint must be an http"),
        ({"model": ""}, "`model` of Endpoint must be a name"),
        ({"parallel": 0}, "`parallel` of Endpoint must be >= 1; got 0"),
        ({"timeout": 0}, "`timeout` of Endpoint must be > 0; got 0"),
        ({"retries": -1}, "`retries` of Endpoint must be >= 0; got -1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Endpoint(**{"url": "http://127.0.0.1/v1", "model": "m", **settings})


def test_sampling_is_asked_of_the_server_with_a_seed_of_its_own_for_every_chat():
    with chat_server(lambda body: "yes") as (url, requests):
        asked = Endpoint(url=url, model="m", parallel=1)
        told = {}
        asked.answers(
            chats(2),
            max_new_tokens=5,
            sampling=Sampling(temperature=0.7, top_p=0.9, seed=5),
            found=told.__setitem__,
        )
    assert [(r["temperature"], r["top_p"], r["seed"]) for r in requests] == [(0.7, 0.9, 5), (0.7, 0.9, 6)]
    assert told == {0: "yes", 1: "yes"}
