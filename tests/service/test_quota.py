# SPDX-License-Identifier: Apache-2.0
"""What a project may use, how fast its keys may ask, and who has keys."""

import threading

import openai
import pytest
from fastapi.testclient import TestClient

from moored.errors import ConfigError
from moored.service import quota
from moored.service.database import Base, Database, Job
from moored.service.identity import (
    every_key,
    first_key,
    make_key,
    make_project,
    project_named,
    revoke,
    set_limits,
    whose,
)
from moored.service.ids import new_id
from moored.service.policy import Limits
from moored.service.problems import ApiProblem
from moored.service.quota import Rates


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/a.sqlite")
    Base.metadata.create_all(database.engine)
    yield database
    database.close()


class Clock:
    def __init__(self):
        self.moment = 1000.0

    def __call__(self):
        return self.moment


def test_a_bucket_empties_and_fills_evenly():
    clock = Clock()
    rates, limits = Rates(clock), Limits(requests_per_minute=60)
    left = [int(rates.request("a", limits)["x-ratelimit-remaining-requests"]) for _ in range(60)]
    assert left == list(range(59, -1, -1))
    with pytest.raises(ApiProblem) as refused:
        rates.request("a", limits)
    assert refused.value.status == 429
    assert refused.value.headers["retry-after"] == "1"
    assert refused.value.headers["x-ratelimit-limit-requests"] == "60"
    rates.request("b", limits)  # another key has its own
    clock.moment += 0.9
    with pytest.raises(ApiProblem):
        rates.request("a", limits)
    clock.moment += 0.2
    rates.request("a", limits)
    clock.moment += 1e6
    assert rates.request("a", limits)["x-ratelimit-remaining-requests"] == "59"  # never more than a minute's


def test_a_lower_limit_holds_at_once():
    rates = Rates(Clock())
    rates.request("a", Limits(requests_per_minute=600))
    assert rates.request("a", Limits(requests_per_minute=2))["x-ratelimit-remaining-requests"] == "1"


def test_tokens_are_counted_beside_requests():
    clock = Clock()
    rates, limits = Rates(clock), Limits(tokens_per_minute=100, requests_per_minute=1)
    rates.request("a", limits)
    assert rates.tokens("a", limits, 70)["x-ratelimit-remaining-tokens"] == "30"
    with pytest.raises(ApiProblem) as refused:
        rates.tokens("a", limits, 60)
    assert refused.value.headers["retry-after"] == "18"
    assert refused.value.type == "tokens"
    with pytest.raises(ApiProblem) as never:
        rates.tokens("a", limits, 101)
    assert never.value.headers["x-should-retry"] == "false"


def test_racers_get_no_more_than_there_is():
    rates, limits, got = Rates(Clock()), Limits(requests_per_minute=50), []

    def ask():
        for _ in range(20):
            try:
                got.append(rates.request("a", limits))
            except ApiProblem:
                continue

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 50


def test_old_buckets_are_forgotten():
    clock = Clock()
    rates = Rates(clock)
    for n in range(10_001):
        rates.request(str(n), Limits())
    clock.moment += 61
    rates.request("new", Limits())
    assert len(rates._buckets) == 1


def test_the_client_hears_how_long_to_wait(server):
    set_limits(server.parts.database, "one", {"requests_per_minute": 3})
    client = server.client()
    for _ in range(3):
        client.files.list()
    with pytest.raises(openai.RateLimitError) as refused:
        client.files.list()
    assert refused.value.code == "rate_limit_exceeded"
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 20
    answer = server.client(server.other_key).files.with_raw_response.list()
    assert answer.headers["x-ratelimit-remaining-requests"] == "599"


def _job(project_id, *, status="queued", created_at=None):
    return Job(
        id=new_id("ftjob"),
        project_id=project_id,
        created_at=quota.now() if created_at is None else created_at,
        model="m",
        training_file="f",
        seed=0,
        method={},
        policy={},
        policy_sha256="",
        status=status,
    )


def test_jobs_that_wait_and_jobs_of_a_day(database):
    one, two = make_project(database, "one").id, make_project(database, "two").id
    limits = Limits(waiting_jobs=2, jobs_per_day=3)

    def add(project_id=one, **more):
        with database.writing() as session:
            quota.room_for_job(session, limits, project_id)
            session.add(_job(project_id, **more))

    add()
    add(status="running")
    with pytest.raises(ApiProblem, match="2 fine-tuning jobs that are not over") as refused:
        add()
    assert refused.value.headers["x-should-retry"] == "false"
    add(two)
    with database.writing() as session:
        for job in session.query(Job).where(Job.project_id == one):
            job.status = "failed"
    add()
    with pytest.raises(ApiProblem, match="last 24 hours"):
        add()
    with database.writing() as session:
        for job in session.query(Job).where(Job.project_id == one):
            job.created_at -= quota.DAY
    add()


def test_a_projects_own_limits_go_first(database):
    project = make_project(database, "one", {"rows": 20})
    set_limits(database, "one", {"jobs_per_day": 7})
    with database.reading() as session:
        limits = quota.limits_of(session, Limits(rows=1000, waiting_jobs=5), project.id)
    assert (limits.rows, limits.jobs_per_day, limits.waiting_jobs) == (20, 7, 5)
    assert set_limits(database, "one", {"rows": None}).limits == {"jobs_per_day": 7}
    with pytest.raises(ConfigError, match="did you mean 'rows'"):
        set_limits(database, "one", {"row": 20})
    with pytest.raises(ConfigError, match="`rows` must be greater"):
        make_project(database, "two", {"rows": 1})
    with pytest.raises(ConfigError, match="did you mean 'one'"):
        project_named(database, "on")
    with pytest.raises(ConfigError, match="already"):
        make_project(database, "one")


def test_keys_are_hashed_and_revoked(database):
    project = make_project(database, "one")
    key = make_key(database, project.id, role="operator", name="mine")
    caller = whose(database, key)
    assert (caller.project_id, caller.role) == (project.id, "operator")
    caller.must_be("operator")
    with pytest.raises(ApiProblem, match="admin"):
        caller.must_be("admin")
    [(_, row)] = every_key(database)
    assert key not in str(vars(row))
    assert key.startswith(row.shown.split("...")[0])
    revoke(database, row.id)
    assert whose(database, key) is None
    with pytest.raises(ConfigError, match="no such key"):
        revoke(database, "key-nothing")


def test_the_first_key_is_made_once(database):
    first = first_key(database)
    assert whose(database, first).role == "admin"
    assert first_key(database) is None
    make_key(database, project_named(database, "default").id)
    revoke(database, first)
    second = first_key(database)  # who lost the key revokes it and starts again
    assert whose(database, second).role == "admin"


def test_a_key_of_the_admin_is_no_way_into_other_projects(app, keys):
    user, _, admin = keys
    with TestClient(app) as client:
        made = client.post(
            "/v1/files",
            headers={"Authorization": f"Bearer {user}"},
            data={"purpose": "batch"},
            files={"file": ("a", b"abc")},
        ).json()["id"]
        assert client.get(f"/v1/files/{made}", headers={"Authorization": f"Bearer {admin}"}).status_code == 404
