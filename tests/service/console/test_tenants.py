# SPDX-License-Identifier: Apache-2.0
"""What is whose on the console: a project's own, and for an admin everybody's."""

import re

import pytest
from sqlalchemy import select

from moored.service.database import File, Job, Model
from service.a_console import add_file, add_project, running, settled
from service.a_visitor import all_pages


def test_another_project_sees_nothing(parts, of):
    shared, own = all_pages(parts)
    names = ("support.jsonl", "ftjob-", "file-", "forbidden thing")
    mine, theirs = of(), of("proj-2", "operator")
    seen = "".join(mine.get(path).text for path in (*shared, *own))
    assert all(name in seen for name in names)
    for path in shared:
        text = theirs.get(path).text
        assert not any(name in text for name in names), path
    for path in own:
        answer = theirs.get(path)
        assert answer.status_code == 404, path
        assert set(names) & set(re.findall("support.jsonl|forbidden thing", answer.text)) == set(), path
        same = answer.text.replace(path.split("/")[2], "X") == theirs.get(f"/{path.split('/')[1]}/none").text.replace(
            "none", "X"
        )
        assert same or path.count("/") > 2, path


@pytest.mark.parametrize("role", ["user", "operator"])
def test_another_project_can_do_nothing(parts, of, role):
    _, own = all_pages(parts)
    theirs = of("proj-2", role)
    token = {"token": theirs.token("/")}
    sha = {"weights_sha256": "ab" * 32, "reason": "because it is asked for by a test"}
    for what in ("cancel", "pause", "resume", "approve", "refuse", "override"):
        job = "refused1" if what == "override" else "waiting1"
        assert theirs.http.post(f"/jobs/ftjob-{job}/{what}", data=token | sha).status_code == 404, what
    file = own[-2]
    assert theirs.http.post(f"{file}/delete", data=token).status_code == 404
    asked = token | {"model": "smollm2", "training_file": file.rpartition("/")[2]}
    assert theirs.http.post("/jobs", data=asked).status_code == 400
    with parts.database.reading() as session:
        assert {model.state for model in session.scalars(select(Model))} == {"passed", "refused", "waiting"}
        assert session.scalars(select(File.id)).all()
        assert {job.wanted for job in session.scalars(select(Job))} == {""}


@pytest.fixture
def two(parts):
    """A job, and its file, in each of two projects."""
    made = {}
    for project in ("proj-1", "proj-2"):
        file = add_file(parts, project, f"{project}.jsonl")
        made[project] = (
            running(
                parts, job_id=f"ftjob-of-{project}", project_id=project, suffix=f"for-{project}", training_file=file.id
            ),
            file.id,
        )
    return made


def listed(page):
    return {link for link in page.links if link and link.startswith("/jobs/")}


def test_an_admin_sees_the_jobs_of_all_projects_with_their_names(parts, of, two):
    admin = of("proj-2", "admin")
    page = admin.see("/")
    assert listed(page) == {"/jobs/ftjob-of-proj-1", "/jobs/ftjob-of-proj-2"}
    assert ("td", {"data-head": "Project", "class": "name"}) in page.tags
    assert "New job in the project proj-2" in page.says()
    for project, (job, file) in two.items():
        assert listed(admin.see(f"/?project={project}")) == {f"/jobs/{job}"}
        assert f"project {project}" in admin.see(f"/jobs/{job}").says()
        shown = admin.see(f"/files/{file}").says()
        assert f"{project}.jsonl" in shown
        assert f"· project {project}" in shown
        assert admin.get(f"/files/{file}/content").status_code == 200
    assert not listed(admin.see("/?project=none"))


@pytest.mark.parametrize("role", ["user", "operator"])
def test_nobody_else_sees_them_whatever_they_ask_for(parts, of, two, role):
    member = of("proj-2", role)
    for path in ("/", "/?project=", "/?project=proj-1", "/?project=proj-2", "/?file=" + two["proj-1"][1]):
        page = member.see(path)
        assert listed(page) == {"/jobs/ftjob-of-proj-2"}
        assert "proj-1" not in page.says()
        assert "project" not in {own.get("id") for _, own in page.tags}
    assert member.get("/?after=ftjob-of-proj-1").status_code == 400
    assert "· project proj-2" not in member.see("/jobs/ftjob-of-proj-2").says()  # they know in which they are


def test_the_filter_of_an_admin_stays_while_pages_are_turned(parts, of):
    for number in range(21):
        running(parts, job_id=f"ftjob-a{number:02}", project_id="proj-1")
        running(parts, job_id=f"ftjob-b{number:02}", project_id="proj-2")
    admin = of("proj-1", "admin")
    first = admin.see("/?project=proj-2")
    (older,) = [link for link in first.links if link and "after=" in link]
    found = listed(first) | listed(admin.see(older))
    assert found == {f"/jobs/ftjob-b{number:02}" for number in range(21)}


def test_an_admin_stops_a_job_of_another_project_and_deletes_nothing_there(parts, of, two):
    job, file = two["proj-1"]
    admin = of("proj-2", "admin")
    assert admin.post(f"/jobs/{job}", f"/jobs/{job}/cancel").status_code == 200
    with parts.database.reading() as session:
        assert session.get(Job, job).wanted == "cancel"
    assert f"/files/{file}/delete" not in admin.get(f"/files/{file}").text
    assert admin.post("/", f"/files/{file}/delete").status_code == 404
    asked = {"model": "smollm2", "training_file": file}
    assert admin.post("/", "/jobs", **asked).status_code == 400


def test_an_admin_reads_the_card_of_another_project(parts, of):
    add_project(parts, "proj-2")
    settled(parts, state="refused", job_id="ftjob-refused1", arm="undefended")
    admin = of("proj-2", "admin")
    assert "/jobs/ftjob-refused1/card.html" in admin.see("/jobs/ftjob-refused1").links
    assert admin.get("/jobs/ftjob-refused1/card.html").status_code == 200
    assert admin.get("/jobs/ftjob-refused1/card.json").status_code == 200
