# SPDX-License-Identifier: Apache-2.0
"""Signing in to the console with an API key, and out."""

from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from moored.service.console.sessions import LIFE, Sessions
from moored.service.console.visitor import COOKIE
from moored.service.database import Key
from moored.service.identity import make_key, revoke, set_limits
from moored.service.quota import Rates
from service.a_visitor import Person, all_pages


def test_nobody_sees_anything_before_signing_in(app, parts):
    stranger = Person(app)
    shared, own = all_pages(parts)
    for path in (*shared, *own, "/keys"):
        answer = stranger.http.get(path, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/sign-in"), path
        assert not answer.content
    assert "API key" in stranger.see("/").says()


def test_signing_in_with_a_key_and_out(app, parts):
    key = make_key(parts.database, "proj-1")
    person = Person(app)
    answer = person.sign_in(key, next="/files")
    assert answer.url.path == "/files"
    cookie = person.http.cookies[COOKIE]
    assert key not in answer.text
    assert key not in cookie
    header = answer.history[0].headers["set-cookie"].lower()
    assert "httponly" in header
    assert "samesite=strict" in header
    assert "secure" not in header  # this is http
    assert key.encode() not in repr(vars(parts.sessions)).encode()
    assert cookie not in repr(vars(parts.sessions))
    person.post("/", "/sign-out")
    assert person.see("/").says().startswith("Sign in")
    person.http.cookies.set(COOKIE, cookie)  # a copy that somebody kept opens nothing
    assert person.see("/").says().startswith("Sign in")


def test_over_tls_the_cookie_stays_on_tls(app, parts):
    answer = TestClient(app, base_url="https://testserver").get("/sign-in")
    assert "secure" in answer.headers["set-cookie"].lower()


def test_a_wrong_key_is_refused_and_not_repeated(app, parts):
    answer = Person(app).sign_in("sk-moored-wrong")
    assert answer.status_code == 401
    assert "not a key of this server" in answer.text
    assert "sk-moored-wrong" not in answer.text


def test_signing_in_gives_a_new_cookie(app, parts):
    person = Person(app)
    person.get("/sign-in")
    before = person.http.cookies[COOKIE]
    person.sign_in(make_key(parts.database, "proj-1"))
    assert person.http.cookies[COOKIE] != before
    assert parts.sessions.key_of(before) is None


@pytest.mark.parametrize("elsewhere", ["https://evil.test/", "//evil.test", "/\\evil.test", "evil", "/a\r\nb"])
def test_nobody_is_led_elsewhere(app, parts, elsewhere):
    answer = Person(app).sign_in(make_key(parts.database, "proj-1"), next=elsewhere)
    assert answer.history[0].headers["location"] == "/"


def test_a_revoked_key_ends_its_sessions_at_once(app, parts, of):
    person = of()
    with parts.database.reading() as session:
        (key,) = session.scalars(select(Key)).all()
    assert person.see("/").says().startswith("Jobs")
    revoke(parts.database, key.id)
    assert person.see("/").says().startswith("Sign in")


def test_sessions_end_by_themselves():
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    cookie = sessions.begin("key-1")
    now[0] = LIFE - 1
    assert sessions.key_of(cookie) == "key-1"
    now[0] = LIFE
    assert sessions.key_of(cookie) is None
    assert sessions.key_of("") is None
    assert not sessions.is_token("", sessions.token(""))


def test_tries_to_sign_in_are_counted(app, parts):
    app.state.parts = replace(parts, rates=Rates(lambda: 0.0))  # no time goes by, however slow the machine is
    person = Person(app)
    token = person.token("/sign-in")
    tried = [person.http.post("/sign-in", data={"token": token, "key": "no"}) for _ in range(31)]
    assert [answer.status_code for answer in tried] == [401] * 30 + [429]
    assert int(tried[-1].headers["retry-after"]) >= 1
    assert "Too much at once" in tried[-1].text


def test_pages_count_against_the_rate_of_the_key(app, parts, of):
    app.state.parts = replace(parts, rates=Rates(lambda: 0.0))
    set_limits(parts.database, "proj-1", {"requests_per_minute": 3})
    person = of()  # which asks for "/" as well
    assert [person.get("/policy").status_code for _ in range(3)] == [200, 200, 429]
