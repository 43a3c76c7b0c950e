# SPDX-License-Identifier: Apache-2.0
"""`/v1/fine_tuning`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request

from moored.service import jobs
from moored.service.parts import Here, Who
from moored.service.problems import ApiProblem
from moored.service.routing import Route

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"], route_class=Route)

JobId = Annotated[str, Path(description="id of a fine-tuning job", max_length=64)]
After = Annotated[str | None, Query(description="id of the last item of the page before")]
Limit = Annotated[int, Query(ge=1, le=100)]

_METADATA = re.compile(r"metadata\[(.{1,64})\]")


@router.post("/jobs")
def create(here: Here, who: Who, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """Start a job."""
    limits = here.limits(who.project_id)
    return jobs.shown(jobs.create(here.database, here.policy(), limits, who.project_id, body))


@router.get("/jobs")
def list_jobs(request: Request, here: Here, who: Who, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    """The jobs of the project, newest first; `metadata[k]=v` chooses among them, `metadata=null` those without."""
    asked = request.query_params
    wanted = {found[1]: value for name, value in asked.items() if (found := _METADATA.fullmatch(name))}
    only = jobs.with_metadata(wanted) + (jobs.with_metadata(None) if asked.get("metadata") == "null" else [])
    listing = jobs.LISTED.only(*only) if only else jobs.LISTED
    with here.database.looking() as connection:
        mine = {"project_id": who.project_id}
        return listing.page(connection, mine, shown=jobs.shown, after=after, limit=limit)


@router.get("/jobs/{job_id}")
def retrieve(job_id: JobId, here: Here, who: Who) -> dict[str, Any]:
    """One job."""
    with here.database.looking() as connection:
        return jobs.shown(jobs.look(connection, who.project_id, job_id))


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: JobId, here: Here, who: Who) -> dict[str, Any]:
    """Cancel a job."""
    return jobs.shown(jobs.wish(here.database, who.project_id, job_id, "cancel"))


@router.post("/jobs/{job_id}/pause")
def pause(job_id: JobId, here: Here, who: Who) -> dict[str, Any]:
    """Pause a job; it keeps its place."""
    return jobs.shown(jobs.wish(here.database, who.project_id, job_id, "pause"))


@router.post("/jobs/{job_id}/resume")
def resume(job_id: JobId, here: Here, who: Who) -> dict[str, Any]:
    """Let a paused job go on."""
    return jobs.shown(jobs.wish(here.database, who.project_id, job_id, "resume"))


@router.get("/jobs/{job_id}/events")
def events(job_id: JobId, here: Here, who: Who, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    """The job's story, newest first."""
    with here.database.looking() as connection:
        of = {"job_id": jobs.look(connection, who.project_id, job_id).id}
        return jobs.EVENTS.page(connection, of, shown=jobs.event_shown, after=after, limit=limit)


@router.get("/jobs/{job_id}/checkpoints")
def checkpoints(job_id: JobId, here: Here, who: Who, after: After = None, limit: Limit = 10) -> dict[str, Any]:
    """The numbers at the job's checkpoints, newest first."""
    with here.database.looking() as connection:
        job = jobs.look(connection, who.project_id, job_id)
        show = jobs.checkpoint_shown(job)
        return jobs.CHECKPOINTS.page(connection, {"job_id": job.id}, shown=show, after=after, limit=limit)


@router.post("/alpha/graders/{what}")
def graders(what: str, who: Who) -> None:
    """Graders are not run here: a grader may be code, and nothing in a request is ever run as code."""
    raise ApiProblem(
        501, "This server does not run graders.", code="not_implemented", headers={"x-should-retry": "false"}
    )
