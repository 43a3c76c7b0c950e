# SPDX-License-Identifier: Apache-2.0
"""Approvals and overrides: by the right person, about the weights that are there, and never silently."""

import sys
import threading
import types

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from moored.cli import main
from moored.errors import DataError
from moored.service import audit_log, report_card
from moored.service.approvals import Offices
from moored.service.card_page import page, standing
from moored.service.database import Event, Job, Model
from moored.service.identity import Caller, make_key
from moored.service.parts import Parts
from moored.service.problems import ApiProblem
from moored.service.report_card import CARD, lets_serve, read_card, verify_card
from moored.service.routes import approvals as approval_routes
from moored.service.routes import cards as card_routes
from moored.service.settings import ServerSettings
from moored.service.signing import SigningKey
from service.a_job import SHA, a_database, a_job, policy

WHY = "A red team needs it for a week, inside the lab."
OPERATOR = Caller(key_id="key-op", project_id="proj-1", role="operator")


@pytest.fixture
def server(tmp_path):
    return ServerSettings(home=tmp_path)


@pytest.fixture
def database(server):
    made = a_database(server.home)
    yield made
    made.close()


@pytest.fixture
def offices(server, database):
    """With weights that are what they were."""
    return Offices(settings=server, database=database, digest=lambda model: model.sha256)


def now_is(database):
    with database.reading() as session:
        return session.get(Job, "ftjob-1"), session.query(Model).one()


def card(server):
    signed = read_card(server.job("ftjob-1") / CARD)
    assert verify_card(signed, SigningKey.of(server.home).public)
    return signed["card"]


def actions(server):
    assert audit_log.verify(server.home).ok
    return [(entry["actor"], entry["action"]) for entry in audit_log.entries(server.home)]


def test_an_approved_model_is_served_and_the_card_says_by_whom(server, database, offices):
    a_job(database, server, approval=True)
    assert standing(card(server)) == ("Passed, waits for a person", "amber")
    assert offices.approve("ftjob-1", OPERATOR, sha256=SHA).state == "passed"
    job, model = now_is(database)
    assert (job.status, job.phase, job.fine_tuned_model) == ("succeeded", "over", model.id)
    assert job.finished_at
    assert standing(card(server)) == ("Passed", "good")
    assert card(server)["people"][0]["by"] == "key:key-op"
    assert actions(server) == [("key:key-op", "job.approve")]
    with database.reading() as session:
        assert "approved the model" in session.query(Event).one().message


def test_a_refused_model_is_not_served_and_can_be_overridden_later(server, database, offices):
    a_job(database, server, approval=True)
    offices.refuse("ftjob-1", OPERATOR, sha256=SHA, reason="not for us")
    job, model = now_is(database)
    assert (job.status, job.error["code"], model.state) == ("failed", "not_approved", "refused")
    assert job.fine_tuned_model is None
    with pytest.raises(ApiProblem, match="does not wait"):
        offices.approve("ftjob-1", OPERATOR, sha256=SHA)
    offices.override("ftjob-1", OPERATOR, sha256=SHA, reason=WHY)
    assert standing(card(server))[0] == "Refused by a person, served by override"
    assert [entry["what"] for entry in card(server)["people"]] == ["refuse", "override"]


def test_an_override_is_never_silent(server, database, offices):
    a_job(database, server, state="refused", arm="undefended")
    offices.override("ftjob-1", OPERATOR, sha256=SHA, reason=WHY)
    job, model = now_is(database)
    assert (model.state, job.fine_tuned_model) == ("passed", model.id)
    assert (job.status, job.error["code"]) == ("failed", "safety_gate")  # what the gate said stays said
    assert job.safety["people"][0]["reason"] == WHY
    found = card(server)
    assert found["decision"]["passed"] is False
    html = page({"card": found, "signature": SigningKey.of(server.home).sign("card", found)})
    for text in (html, (server.job("ftjob-1") / "card.html").read_text()):
        assert "Refused by the gate, served by override" in text
        assert WHY in text
        assert "did not pass it" in text
    assert actions(server) == [("key:key-op", "job.override")]
    with pytest.raises(ApiProblem, match="Only a refused model"):
        offices.override("ftjob-1", OPERATOR, sha256=SHA, reason=WHY)


@pytest.mark.parametrize(
    ("caller", "status"),
    [
        (Caller(key_id="key-u", project_id="proj-1", role="user"), 403),
        (Caller(key_id="key-o", project_id="proj-2", role="operator"), 404),
    ],
)
def test_the_wrong_person_changes_nothing(server, database, offices, caller, status):
    a_job(database, server, approval=True)
    for decide in (offices.approve, offices.refuse, offices.override):
        with pytest.raises(ApiProblem) as caught:
            decide("ftjob-1", caller, sha256=SHA, reason=WHY)
        assert caught.value.status == status
    assert now_is(database)[1].state == "waiting"
    assert list(audit_log.entries(server.home)) == []


def allowed(server, sha256=SHA):
    return lets_serve(read_card(server.job("ftjob-1") / CARD), SigningKey.of(server.home).public, sha256)


def test_the_card_by_itself_says_what_may_be_served(server, database, offices):
    """So that a row in the database is not enough."""
    a_job(database, server, approval=True)
    assert not allowed(server)  # waits
    offices.approve("ftjob-1", OPERATOR, sha256=SHA)
    assert allowed(server)
    assert not allowed(server, "00" * 32)
    assert not lets_serve(read_card(server.job("ftjob-1") / CARD), SigningKey.of(server.home / "other").public, SHA)
    a_job(database, server, state="refused", arm="undefended", job_id="ftjob-2")
    path = server.job("ftjob-2") / CARD
    public = SigningKey.of(server.home).public
    assert not lets_serve(read_card(path), public, SHA)
    offices.override("ftjob-2", OPERATOR, sha256=SHA, reason=WHY)
    assert lets_serve(read_card(path), public, SHA)
    a_job(database, server, state="passed", approval=False, job_id="ftjob-3")
    assert lets_serve(read_card(server.job("ftjob-3") / CARD), public, SHA)


def test_what_a_person_refused_the_card_does_not_let_through(server, database, offices):
    a_job(database, server, approval=True)
    offices.refuse("ftjob-1", OPERATOR, sha256=SHA)
    assert not allowed(server)


def test_an_admin_decides_in_every_project(server, database, offices):
    a_job(database, server, approval=True)
    offices.approve("ftjob-1", Caller(key_id="key-a", project_id="proj-2", role="admin"), sha256=SHA)
    assert now_is(database)[1].state == "passed"


def _unreadable(model):
    raise FileNotFoundError("gone")


@pytest.mark.parametrize(
    ("digest", "sha256", "said"),
    [
        (lambda model: "00" * 32, SHA, "were changed since"),
        (_unreadable, SHA, "cannot be read"),
        (lambda model: model.sha256, "00" * 32, "is not that of this job's model"),
        (lambda model: model.sha256, "", "is not that of this job's model"),
    ],
)
@pytest.mark.parametrize("what", ["approve", "override"])
def test_other_weights_than_those_shown_are_not_decided_about(server, database, digest, sha256, said, what):
    a_job(database, server, state="waiting" if what == "approve" else "refused", approval=True)
    offices, before = Offices(settings=server, database=database, digest=digest), now_is(database)[1].state
    with pytest.raises(ApiProblem, match=said):
        getattr(offices, what)("ftjob-1", OPERATOR, sha256=sha256, reason=WHY)
    assert now_is(database)[1].state == before
    assert card(server)["people"] == []


def test_weights_that_are_gone_can_still_be_refused(server, database):
    a_job(database, server, approval=True)
    Offices(settings=server, database=database, digest=_unreadable).refuse("ftjob-1", OPERATOR, sha256=SHA)
    assert now_is(database)[1].state == "refused"


@pytest.mark.parametrize(
    "reason", ["", "because", " " * 40, "x" * 3000, "sk-moored-" + "x" * 43, "a reason\x00" + "y" * 20]
)
def test_a_reason_must_be_one(server, database, offices, reason):
    a_job(database, server, state="refused", arm="undefended")
    with pytest.raises(ApiProblem, match="reason"):
        offices.override("ftjob-1", OPERATOR, sha256=SHA, reason=reason)
    assert now_is(database)[1].state == "refused"


def test_what_cannot_be_written_down_is_not_done(server, database, offices, monkeypatch):
    a_job(database, server, state="refused", arm="undefended")
    audit_log.append(server.home, "server", "job.create", "ftjob-1")
    log = server.home / "audit.jsonl"
    kept = log.read_bytes()
    log.write_bytes(b"")  # cut
    log.write_bytes(kept[:-3] + b"x" + kept[-2:])  # changed at its end
    with pytest.raises(ApiProblem, match="could not be written down") as caught:
        offices.override("ftjob-1", OPERATOR, sha256=SHA, reason=WHY)
    assert caught.value.status == 500
    assert now_is(database)[1].state == "refused"
    log.write_bytes(kept)

    def broken(*_):
        raise DataError("disk full")

    monkeypatch.setattr(report_card, "amend", broken)
    with pytest.raises(ApiProblem):
        offices.override("ftjob-1", OPERATOR, sha256=SHA, reason=WHY)
    assert now_is(database)[1].state == "refused"
    monkeypatch.undo()
    assert offices.override("ftjob-1", OPERATOR, sha256=SHA, reason=WHY).state == "passed"


def test_of_two_at_once_one_decides(server, database, offices):
    a_job(database, server, approval=True)
    said = []

    def decide(what):
        try:
            said.append(getattr(offices, what)("ftjob-1", OPERATOR, sha256=SHA).state)
        except ApiProblem as problem:
            said.append(problem.status)

    threads = [threading.Thread(target=decide, args=(what,)) for what in ("approve", "refuse") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, said)) == sorted(["400"] * 5 + [now_is(database)[1].state])
    assert len(card(server)["people"]) == 1


def test_a_cancelled_job_cannot_be_approved(server, database, offices):
    a_job(database, server, approval=True)
    with database.writing() as session:
        job = session.get(Job, "ftjob-1")
        job.status, job.phase = "cancelled", "over"
    with pytest.raises(ApiProblem, match="its job is cancelled"):
        offices.approve("ftjob-1", OPERATOR, sha256=SHA)


@pytest.fixture
def registry(monkeypatch):
    """A stand-in for the part that knows weights."""
    made = types.ModuleType("moored.service.registry")
    made.digest = lambda folder, start: SHA
    made.start_path = lambda settings, start: start
    monkeypatch.setitem(sys.modules, "moored.service.registry", made)


@pytest.fixture
def client(server, database, registry):
    app = FastAPI()
    app.state.parts = Parts(settings=server, database=database, policy=policy)
    app.include_router(card_routes.router)
    app.include_router(approval_routes.router)
    app.exception_handler(ApiProblem)(lambda _, problem: JSONResponse(problem.body(), problem.status))
    return TestClient(app)


def bearer(database, project="proj-1", role="user"):
    return {"Authorization": f"Bearer {make_key(database, project, role=role)}"}


def test_over_http(server, database, client):
    a_job(database, server, state="refused", arm="undefended")
    user, operator = bearer(database), bearer(database, role="operator")
    at = "/v1/fine_tuning/jobs/ftjob-1"
    signed = client.get(f"{at}/card", headers=user).json()
    key = client.get("/v1/moored/signing-key").json()
    assert verify_card(signed, key["public_key"])
    assert client.get(f"{at}/card", headers=bearer(database, "proj-2")).status_code == 404
    assert client.get(f"{at}/card").status_code == 401
    shown = client.get(f"{at}/card.html", headers=user)
    assert "script" not in shown.headers["content-security-policy"]
    assert "Refused" in shown.text
    body = {"weights_sha256": signed["card"]["weights"]["sha256"], "reason": WHY}
    assert client.post(f"{at}/override", json=body, headers=user).status_code == 403
    assert client.post(f"{at}/override", json={**body, "force": True}, headers=operator).status_code == 422
    assert client.post(f"{at}/approve", json=body, headers=operator).status_code == 400
    assert client.post(f"{at}/override", json=body, headers=operator).json()["state"] == "passed"
    assert client.get(f"{at}/card", headers=user).json()["card"]["people"][0]["what"] == "override"


def test_a_card_that_was_changed_is_not_handed_out(server, database, client):
    a_job(database, server, state="refused", arm="undefended")
    path = server.job("ftjob-1") / CARD
    path.write_text(path.read_text().replace('"passed":false', '"passed":true'))
    for end in ("card", "card.html"):
        answer = client.get(f"/v1/fine_tuning/jobs/ftjob-1/{end}", headers=bearer(database))
        assert answer.status_code == 500
        assert "not as this server signed it" in answer.json()["error"]["message"]
    path.unlink()
    assert client.get("/v1/fine_tuning/jobs/ftjob-1/card", headers=bearer(database)).status_code == 404


def test_the_command(server, database, registry, capsys, monkeypatch):
    a_job(database, server, approval=True)
    run = ["approve", "ftjob-1", "--home", str(server.home)]
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert main([*run, "--sha256", "00" * 32]) == 2
    assert main([*run, "--override", "--sha256", SHA, "--reason", WHY]) == 2
    assert main([*run, "--refuse", "--override"]) == 2
    assert main(["approve", "ftjob-9", "--home", str(server.home), "--sha256", SHA]) == 2
    assert main(["approve", "ftjob-1", "--home", str(server.home / "nowhere")]) == 2
    assert now_is(database)[1].state == "waiting"
    assert main([*run, "--sha256", SHA, "--reason", "looked at the answers"]) == 0
    said = capsys.readouterr().out
    assert "harmful score 0.0 %" in said
    assert SHA in said
    assert now_is(database)[1].state == "passed"
    (actor, action), *_ = actions(server)
    assert actor.startswith("os:")
    assert actor != "os:somebody-else"
    assert action == "job.approve"
