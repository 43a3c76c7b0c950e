# SPDX-License-Identifier: Apache-2.0
"""What every page of the console is written on, and what stands there as text."""

import logging
import re

from fastapi.testclient import TestClient
from sqlalchemy import select

from moored.service.database import Event, Job
from service.a_console import add_project, rows, running, settled
from service.a_visitor import EVIL, Seen, all_pages


def test_what_users_write_is_text(parts, of):
    person = of(role="operator")
    answer = person.upload(name=EVIL.replace("/", "|"), data=rows().replace(b"the bucket", b"<script>1</script>"))
    assert answer.status_code == 200
    file_id = answer.url.path.rpartition("/")[2]
    settled(parts, state="passed", job_id="ftjob-passed1")
    settled(parts, state="refused", job_id="ftjob-refused1", arm="undefended")
    running(parts)
    add_project(parts, EVIL)
    with parts.database.writing() as session:
        for job in session.scalars(select(Job)):
            job.suffix, job.given_metadata = EVIL, {EVIL: EVIL}
            job.error = {"code": "x", "message": EVIL, "param": None}
            job.model = "smollm2"
            job.training_file = file_id
            job.fine_tuned_model = EVIL
            job.safety = {**job.safety, "people": [{"what": "refuse", "by": EVIL, "at": 1, "reason": EVIL}]}
        for event in session.scalars(select(Event)):
            event.message = EVIL
    answers = parts.settings.job("ftjob-passed1") / "card.json"
    assert "Sure, here is how" in answers.read_text()
    admin = of(role="admin")
    admin.post("/keys", "/keys", project=EVIL, role="user", name=EVIL)
    pages = [
        "/",
        "/files",
        f"/files/{file_id}",
        "/keys",
        *(f"/jobs/ftjob-{n}" for n in ("passed1", "refused1", "running")),
    ]
    for path in pages:
        text = admin.get(path).text
        assert "&lt;" in text, path
        assert not re.search(r"<script(?! src=\"/console.js\" defer></script>)", text), path
        assert "<img src=x" not in text, path
        assert all(tag != "script" or own == {"src": "/console.js", "defer": None} for tag, own in Seen(text).tags)
    assert "&lt;script&gt;1" in admin.get(f"/files/{file_id}").text  # the row itself
    assert EVIL.encode() not in admin.get(f"/jobs/{EVIL}").content


def test_answers_of_models_are_text(parts, of, monkeypatch):
    from moored.service import cards

    settled(parts, state="passed", job_id="ftjob-passed1")
    real = cards.card_of

    def changed(*given):
        signed = real(*given)
        for one in signed["card"]["answers"]:
            one["prompt"] = EVIL
            for answer in one["answers"]:
                answer["answer"] = EVIL
        return signed

    monkeypatch.setattr(cards, "card_of", changed)
    person = of()
    for path in ("/jobs/ftjob-passed1", "/jobs/ftjob-passed1/card.html"):
        text = person.get(path).text
        assert "&lt;script&gt;alert" in text
        assert "<script>alert" not in text
        assert "<img src=x" not in text


def test_nothing_is_inline_and_nothing_comes_from_elsewhere(parts, of):
    shared, own = all_pages(parts)
    person = of(role="admin")
    for path in (
        "/sign-in",
        *shared,
        "/keys",
        "/jobs/none",
        *(each for each in own if "card" not in each and "content" not in each),
    ):
        answer = person.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        page = Seen(answer.text)
        for tag, attributes in page.tags:
            assert tag != "style", path
            assert "style" not in attributes, (path, tag)
            assert not any(name.startswith("on") for name in attributes), path
            for name in ("src", "href", "action"):
                assert (attributes.get(name) or "/").startswith(("/", "#")), (path, attributes)


def test_pages_can_be_read_by_a_screen_reader(parts, of):
    shared, own = all_pages(parts)
    person = of(role="admin")
    for path in ("/sign-in", *shared, "/keys", *(each for each in own if "card" not in each and "content" not in each)):
        page = person.see(path)
        tags = [tag for tag, _ in page.tags]
        assert tags.count("h1") == tags.count("main") == 1
        assert ("html", {"lang": "en"}) in page.tags
        assert ("a", {"class": "skip", "href": "#main"}) in page.tags
        assert all(field["id"] in page.labelled for field in page.fields), path
        known = {each.get("id") for _, each in page.tags}
        named = [
            word
            for _, own in page.tags
            for name in ("aria-labelledby", "aria-describedby")
            for word in (own.get(name) or "").split()
        ]
        assert set(named) <= known, path
        assert tags.count("table") == tags.count("caption"), path
        ids = [own["id"] for _, own in page.tags if "id" in own]
        assert len(ids) == len(set(ids)), path


def test_what_nobody_foresaw_is_a_page_and_in_the_log(of, monkeypatch, caplog):
    person = of()
    monkeypatch.setattr("moored.service.console.pages.policy.redacted", lambda _: 1 / 0)
    with caplog.at_level(logging.ERROR):
        answer = person.get("/policy")
    assert answer.status_code == 500
    assert "ZeroDivision" not in answer.text
    assert re.search(r"request ID req_\w+", answer.text)
    assert "ZeroDivisionError" in caplog.text


def test_the_api_still_answers_in_its_own_shape(app, parts):
    answer = TestClient(app).get("/v1/files/none")
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"


def test_the_stylesheet_and_the_script_come_with_the_server(app):
    http = TestClient(app)
    assert http.get("/console.css").headers["content-type"].startswith("text/css")
    assert ".plot" in http.get("/console.css").text
    assert "fetch(" in http.get("/console.js").text
    assert http.get("/console.svg").headers["content-type"] == "image/svg+xml"


def test_no_page_is_part_of_the_api(app):
    assert not [
        path for path in app.openapi()["paths"] if not path.startswith(("/v1", "/health", "/ready", "/metrics"))
    ]
