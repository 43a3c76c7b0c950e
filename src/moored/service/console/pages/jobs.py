# SPDX-License-Identifier: Apache-2.0
"""Jobs: all of them, one of them, and what may be done with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from sqlalchemy import Row, bindparam, select

from moored.errors import DataError
from moored.report.record import Record
from moored.service import card_page, cards, files, jobs
from moored.service.approvals import Offices, What
from moored.service.console import job_view, paper
from moored.service.console.visitor import Given, Here, Page, Visitor, Who, go, reach
from moored.service.database import Event, Job, Model, Project, columns_of
from moored.service.folder import JobFolder
from moored.service.identity import Caller, every_project
from moored.service.jobs import Wish
from moored.service.life import FINAL
from moored.service.pages import Listing
from moored.service.parts import Parts
from moored.service.problems import ApiProblem, wrong

router = APIRouter(route_class=Page)

JobId = Annotated[str, Path(max_length=64)]

SHOWN = 20
"""Jobs of one page."""
FILES = 200
"""Newest files that a new job is offered."""
EVENTS = 1000
"""Newest events that are shown."""

EVERYBODYS = Listing(
    (*columns_of(Job), Project.name.label("project")),
    Project.id == Job.project_id,
    by=(Job.created_at, Job.id),
    identity=Job.id,
)
"""All jobs of this server, each with the name of its project."""
OF_ONE = EVERYBODYS.only(Job.project_id == bindparam("project_id"))
"""The jobs of a `project_id`."""

_NUMBERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
_DONE: dict[Wish | What, str] = {
    "cancel": "cancelled",
    "pause": "paused",
    "resume": "resumed",
    "approve": "approved",
    "refuse": "refused",
    "override": "overridden",
}


@router.get("/")
def listing(
    request: Request, here: Here, who: Who, after: str | None = None, file: str = "", project: str = ""
) -> Response:
    """The jobs of the project, an admin's of every project or of one; and the form for a new one."""
    chosen = project if who.admin else who.caller.project_id
    listing, asked = (OF_ONE, {"project_id": chosen}) if chosen else (EVERYBODYS, {})
    uploads = {**files.seen_by(who.caller.project_id), "purpose": "fine-tune"}
    with here.database.looking() as connection:
        listed = listing.page(connection, asked, shown=_line, after=after, limit=SHOWN)
        offered = files.FOR_PURPOSE.page(connection, uploads, shown=files.shown, limit=FILES)
    policy = here.policy()
    return paper.page(
        "jobs",
        visitor=who,
        jobs=listed["data"],
        listed=listed,
        live=any(not each["over"] for each in listed["data"]),
        projects=every_project(here.database) if who.admin else [],
        project=chosen,
        files=offered["data"],
        chosen=file,
        models=list(policy.models),
        policy=policy,
        said=paper.said(request.query_params),
    )


@router.post("/jobs")
def create(here: Here, who: Who, given: Given) -> Response:
    """Start a job."""
    asked = {name: given[name] for name in ("model", "training_file", "validation_file", "suffix") if given.get(name)}
    numbers = {name: _number(given[name]) for name in _NUMBERS if given.get(name, "auto") != "auto"}
    method = {"type": "supervised", "supervised": {"hyperparameters": numbers}}
    seed = {"seed": _number(given["seed"])} if given.get("seed") else {}
    project = who.caller.project_id
    made = jobs.create(here.database, here.policy(), here.limits(project), project, {**asked, **seed, "method": method})
    return go(f"/jobs/{made.id}", "created")


@router.get("/jobs/{job_id}")
def one(job_id: JobId, request: Request, here: Here, who: Who) -> Response:
    """One job; the script asks for it again while it goes on."""
    with here.database.reading() as session:
        job = jobs.find(session, reach(session, who, Job, job_id), job_id)
        project = session.scalar(select(Project.name).where(Project.id == job.project_id))
        newest = select(Event).where(Event.job_id == job.id).order_by(Event.number.desc()).limit(EVENTS)
        events = session.scalars(newest).all()
        model = session.scalar(select(Model).where(Model.job_id == job.id))
    card = _card(here, job, who.caller)
    screening = job.safety.get("screening")
    return paper.page(
        "job",
        visitor=who,
        job=job,
        project=project if who.admin else "",
        status=job_view.status(job),
        verdict=job_view.verdict(job),
        steps=job_view.steps(job),
        over=job.status in FINAL,
        offered=job_view.offered(job),
        decisions=job_view.decisions(job),
        audit=job_view.audit(job, _record(here, job)),
        curve=job_view.curve(events[::-1]),
        events=events,
        screening=screening if screening and "counts" in screening else None,
        hyperparameters=jobs.shown(job)["hyperparameters"],
        mine=model is not None and model.state == "passed" and model.project_id == who.caller.project_id,
        ruling=_ruling(who, job, model),
        card=card,
        answers=card["answers"] if card else [],
        said=paper.said(request.query_params),
    )


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: JobId, here: Here, who: Who, given: Given) -> Response:
    """Cancel a job."""
    return _wish(here, who, job_id, "cancel")


@router.post("/jobs/{job_id}/pause")
def pause(job_id: JobId, here: Here, who: Who, given: Given) -> Response:
    """Pause a job."""
    return _wish(here, who, job_id, "pause")


@router.post("/jobs/{job_id}/resume")
def resume(job_id: JobId, here: Here, who: Who, given: Given) -> Response:
    """Let a paused job go on."""
    return _wish(here, who, job_id, "resume")


@router.post("/jobs/{job_id}/approve")
def approve(job_id: JobId, here: Here, who: Who, given: Given) -> Response:
    """Let a model that waits be served."""
    return _rule(here, who, job_id, "approve", given)


@router.post("/jobs/{job_id}/refuse")
def refuse(job_id: JobId, here: Here, who: Who, given: Given) -> Response:
    """Refuse a model that waits."""
    return _rule(here, who, job_id, "refuse", given)


@router.post("/jobs/{job_id}/override")
def override(job_id: JobId, here: Here, who: Who, given: Given) -> Response:
    """Serve a model that was refused."""
    return _rule(here, who, job_id, "override", given)


@router.get("/jobs/{job_id}/card.html")
def card_html(job_id: JobId, here: Here, who: Who) -> Response:
    """The report card, for people."""
    _own(here, who, job_id)
    text = card_page.page(cards.card_of(here.database, here.settings, job_id, who.caller))
    return HTMLResponse(text.encode(errors="replace"), headers=card_page.HEADERS)


@router.get("/jobs/{job_id}/card.json")
def card_json(job_id: JobId, here: Here, who: Who) -> Response:
    """The report card, signed."""
    _own(here, who, job_id)
    named = {"Content-Disposition": f'attachment; filename="{job_id}.card.json"'}
    return JSONResponse(cards.card_of(here.database, here.settings, job_id, who.caller), headers=named)


def _line(job: Row[Any]) -> dict[str, Any]:
    return {
        "id": job.id,
        "suffix": job.suffix,
        "status": job_view.status(job),
        "verdict": job_view.verdict(job),
        "model": job.model,
        "project": job.project,
        "created_at": job.created_at,
        "over": job.status in FINAL,
    }


def _wish(here: Parts, who: Visitor, job_id: str, wanted: Wish) -> Response:
    jobs.wish(here.database, _own(here, who, job_id).project_id, job_id, wanted)
    return go(f"/jobs/{job_id}", _DONE[wanted])


def _rule(here: Parts, who: Visitor, job_id: str, what: What, given: Mapping[str, str]) -> Response:
    _own(here, who, job_id)
    offices = Offices(settings=here.settings, database=here.database)
    decide = {"approve": offices.approve, "refuse": offices.refuse, "override": offices.override}[what]
    decide(job_id, who.caller, sha256=given.get("weights_sha256", ""), reason=given.get("reason", ""))
    return go(f"/jobs/{job_id}", _DONE[what])


def _own(here: Parts, who: Visitor, job_id: str) -> Job:
    """A job that somebody may do something with: one of their project, an admin's of any.

    Raises:
        ApiProblem: 404.
    """
    with here.database.reading() as session:
        return jobs.find(session, reach(session, who, Job, job_id), job_id)


def _ruling(who: Visitor, job: Job, model: Model | None) -> Mapping[str, Any] | None:
    """What an operator can decide now, and about which weights."""
    waiting = model is not None and model.state == "waiting" and job.phase == "approving"
    if model is None or not who.rules or not (waiting or model.state == "refused"):
        return None
    return {"waiting": waiting, "sha256": model.sha256}


def _card(here: Parts, job: Job, caller: Caller) -> dict[str, Any] | None:
    """The card of a job, if it has one that can be believed."""
    try:
        card: dict[str, Any] = cards.card_of(here.database, here.settings, job.id, caller)["card"]
    except ApiProblem:
        return None
    return card


def _record(here: Parts, job: Job) -> Record | None:
    """The record of a job's study, if it is there and of this version."""
    path = JobFolder(here.settings.job(job.id)).record
    with suppress(DataError, FileNotFoundError):
        return Record.load(path) if "audit" in job.safety and path.is_file() else None
    return None


def _number(text: str) -> int | float:
    """A number of a form, as the API takes it.

    Raises:
        ApiProblem: 400.
    """
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    raise wrong(f"{text[:40]!r} is not a number.")
