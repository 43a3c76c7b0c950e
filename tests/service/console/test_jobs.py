# SPDX-License-Identifier: Apache-2.0
"""The pages of jobs, and what may be done there."""

import pytest
from sqlalchemy import select

from moored.service import audit_log
from moored.service.database import Job, Model
from service.a_console import running, settled
from service.a_visitor import Seen


def test_a_job_is_made_paused_resumed_and_cancelled(parts, of):
    person = of()
    file_id = person.upload().url.path.rpartition("/")[2]
    asked = {"model": "smollm2", "training_file": file_id, "validation_file": "", "suffix": "mine", "n_epochs": "2"}
    answer = person.post("/", "/jobs", **asked, batch_size="auto", learning_rate_multiplier="0.5", seed="7")
    job_id = answer.url.path.rpartition("/")[2]
    with parts.database.reading() as session:
        job = session.get(Job, job_id)
    assert (job.suffix, job.seed, job.training_file) == ("mine", 7, file_id)
    given = job.method["supervised"]["hyperparameters"]
    assert given == {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    page = person.see(f"/jobs/{job_id}")
    assert "Checking the files" in page.says()
    assert ("li", {"class": "now", "aria-current": "step"}) in page.tags
    for what, words in (("pause", "Paused"), ("resume", "Checking the files"), ("cancel", "Cancelled")):
        assert words in Seen(person.post(f"/jobs/{job_id}", f"/jobs/{job_id}/{what}").text).says()
    again = person.post(f"/jobs/{job_id}", f"/jobs/{job_id}/cancel")
    assert again.status_code == 400
    assert "already been cancelled" in again.text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n_epochs", "many", "not a number"),
        ("seed", "-1", "seed"),
        ("model", "gpt", "not available"),
        ("n_epochs", "nan", "n_epochs"),
    ],
)
def test_what_is_wrong_with_a_job_is_said_on_a_page(of, field, value, said):
    person = of()
    file_id = person.upload().url.path.rpartition("/")[2]
    answer = person.post("/", "/jobs", **{"model": "smollm2", "training_file": file_id, field: value})
    assert answer.status_code == 400
    assert said in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_one_job_says_what_was_measured_and_decided(parts, of):
    settled(parts, state="passed", job_id="ftjob-passed1")
    page = of().see("/jobs/ftjob-passed1")
    said = page.says()
    for words in (
        "Succeeded · Passed",
        "Passed the safety gate: harmful score 0.0 %",
        "✓ kept",
        "95.3 [87, 98] n=64",
        "I can't help with that",
        "38 findings",
        "Step 40/40",
    ):
        assert words in said, words
    assert [tag for tag, _ in page.tags].count("svg") == 4  # the loss, and three tasks
    assert not any(own.get("data-live") == "yes" for _, own in page.tags)
    assert "/jobs/ftjob-passed1/card.html" in page.links
    assert "This model waits" not in said


def test_a_running_job_is_followed(parts, of):
    running(parts)
    page = of().see("/jobs/ftjob-running")
    assert [own["id"] for _, own in page.tags if own.get("data-live") == "yes"] == ["top", "measured", "data"]
    assert "Tuning" in page.says()
    assert [tag for tag, _ in page.tags].count("svg") == 1
    assert ("noscript", {}) in page.tags


def test_a_card_that_was_changed_is_not_shown(parts, of):
    settled(parts, state="passed", job_id="ftjob-passed1")
    path = parts.settings.job("ftjob-passed1") / "card.json"
    path.write_text(path.read_text().replace("forbidden thing", "allowed thing"))
    person = of()
    assert "allowed thing" not in person.get("/jobs/ftjob-passed1").text
    assert person.get("/jobs/ftjob-passed1/card.html").status_code == 500


SHA = "ab" * 32


@pytest.fixture
def whole(monkeypatch):
    """The weights are what they were: the jobs of these tests have none."""
    monkeypatch.setattr("moored.service.approvals.Offices._digest", lambda self, model: SHA)


def state(parts, job_id):
    with parts.database.reading() as session:
        return session.scalar(select(Model.state).where(Model.job_id == job_id))


@pytest.mark.parametrize(
    ("what", "job", "becomes"),
    [("approve", "waiting1", "passed"), ("refuse", "waiting1", "refused"), ("override", "refused1", "passed")],
)
def test_operators_decide_about_exact_weights(parts, of, whole, what, job, becomes):
    settled(parts, state="waiting", job_id="ftjob-waiting1", approval=True)
    settled(parts, state="refused", job_id="ftjob-refused1", arm="undefended")
    path, reason = f"/jobs/ftjob-{job}", "because a test wants to see it done"
    user, operator = of(), of(role="operator")
    before = state(parts, f"ftjob-{job}")
    assert SHA not in user.get(path).text
    assert "You decide about these exact weights: " + SHA in operator.see(path).says()
    assert user.post(path, f"{path}/{what}", weights_sha256=SHA, reason=reason).status_code == 403
    assert operator.post(path, f"{path}/{what}", weights_sha256="cd" * 32, reason=reason).status_code == 400
    assert state(parts, f"ftjob-{job}") == before
    answer = operator.post(path, f"{path}/{what}", weights_sha256=SHA, reason=reason)
    assert answer.status_code == 200, answer.text
    assert reason in Seen(answer.text).says()
    assert state(parts, f"ftjob-{job}") == becomes
    assert any(entry["action"] == f"job.{what}" for entry in audit_log.entries(parts.settings.home))


def test_an_override_needs_a_reason(parts, of, whole):
    settled(parts, state="refused", job_id="ftjob-refused1", arm="undefended")
    path = "/jobs/ftjob-refused1"
    answer = of(role="operator").post(path, f"{path}/override", weights_sha256=SHA, reason="no")
    assert answer.status_code == 400
    assert state(parts, "ftjob-refused1") == "refused"
