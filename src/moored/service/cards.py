# SPDX-License-Identifier: Apache-2.0
"""Report cards as callers may read them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from moored.errors import DataError
from moored.service.database import Database, Job
from moored.service.identity import Caller
from moored.service.problems import ApiProblem, missing_job
from moored.service.settings import ServerSettings
from moored.service.signing import SigningKey


def card_of(database: Database, settings: ServerSettings, job_id: str, caller: Caller) -> dict[str, Any]:
    """The signed card of a job, checked: what somebody changed on the disk is not handed out.

    Args:
        database: where the job is.
        settings: where the home is.
        job_id: of the caller's project; an admin's of any.
        caller: who asks.

    Raises:
        ApiProblem: 404 if there is no such job for the caller, or it has no card yet; 500 if the card was changed.
    """
    from moored.service.report_card import CARD, read_card, verify_card

    wanted = select(Job).where(Job.id == job_id)
    if caller.role != "admin":
        wanted = wanted.where(Job.project_id == caller.project_id)
    with database.reading() as session:
        job = session.scalar(wanted)
    if job is None:
        raise missing_job(job_id)
    path = settings.job(job.id) / CARD
    if not path.is_file():
        raise ApiProblem(404, f"The job {job_id} has no report card yet; it gets one when its gate has decided.")
    try:
        signed = read_card(path)
        good = verify_card(signed, SigningKey.of(settings.home).public) and signed["card"]["job"]["id"] == job.id
    except DataError:
        good = False
    if not good:
        raise ApiProblem(
            500,
            f"The report card of {job_id} is not as this server signed it. Ask its operator to restore it.",
            headers={"x-should-retry": "false"},
        )
    return signed
