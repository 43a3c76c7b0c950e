# SPDX-License-Identifier: Apache-2.0
"""What a project may use, and how fast its keys may ask. A project's own limits go before the policy's."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from moored.service.clock import now
from moored.service.database import File, Job, Project, Upload
from moored.service.policy import Limits
from moored.service.problems import ApiProblem
from moored.study.recipe import validated

OVER = ("succeeded", "failed", "cancelled")
"""States in which a job uses nothing any more."""

DAY = 24 * 60 * 60
_FORGET_ABOVE = 10_000


def limits_of(session: Session, limits: Limits, project_id: str) -> Limits:
    """The limits of a project.

    Args:
        session: where the project is.
        limits: the policy's.
        project_id: whose.

    Raises:
        ConfigError: the project's own limits are wrong; names the key.
    """
    project = session.get(Project, project_id)
    return limits_with(limits, project.limits if project is not None else {}, project_id)


def limits_with(limits: Limits, own: Mapping[str, Any], project_id: str) -> Limits:
    """The limits of a project.

    Args:
        limits: the policy's.
        own: what differs from them for the project.
        project_id: for the error.

    Raises:
        ConfigError: the project's own limits are wrong; names the key.
    """
    return _limits_with(limits, tuple(sorted(own.items())), project_id) if own else limits


@lru_cache(maxsize=1024)
def _limits_with(limits: Limits, own: tuple[tuple[str, Any], ...], project_id: str) -> Limits:
    return validated(Limits, limits.model_dump() | dict(own), f"the limits of project {project_id}")


def room_for(session: Session, limits: Limits, project_id: str, more: int) -> None:
    """Refuse `more` bytes that a project has no room for; call it in the transaction that adds them.

    Raises:
        ApiProblem: 429, not to be retried.
    """
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update())
    used = storage_used(session, project_id)
    if used + more > limits.storage_bytes:
        raise _exhausted(
            f"This needs {more:,} bytes; the files of this project take {used:,} of the {limits.storage_bytes:,} "
            "bytes that it may use. Delete some files, or ask the operator for more.",
        )


def storage_used(session: Session, project_id: str) -> int:
    """Bytes of the files of a project, and of what its open uploads have announced."""
    alive = or_(File.expires_at.is_(None), File.expires_at > now())
    files = session.scalar(select(func.sum(File.bytes)).where(File.project_id == project_id, alive))
    pending = (Upload.project_id == project_id, Upload.status == "pending", Upload.expires_at > now())
    uploads = session.scalar(select(func.sum(Upload.bytes)).where(*pending))
    return int(files or 0) + int(uploads or 0)


def room_for_job(session: Session, limits: Limits, project_id: str) -> None:
    """Refuse one more job of a project; call it in the transaction that adds it.

    Raises:
        ApiProblem: 429, not to be retried: too many jobs are not over yet, or were made in the last 24 hours.
    """
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update())
    jobs = select(func.count()).select_from(Job).where(Job.project_id == project_id)
    waiting = session.scalar(jobs.where(Job.status.not_in(OVER))) or 0
    if waiting >= limits.waiting_jobs:
        raise _exhausted(
            f"This project has {waiting} fine-tuning jobs that are not over, and may have {limits.waiting_jobs}. "
            "Wait for one of them, or cancel it.",
            "rate_limit_exceeded",
        )
    today = session.scalar(jobs.where(Job.created_at > now() - DAY)) or 0
    if today >= limits.jobs_per_day:
        raise _exhausted(
            f"This project made {today} fine-tuning jobs in the last 24 hours, and may make {limits.jobs_per_day}.",
            "daily_limit_exceeded",
        )


def _exhausted(message: str, code: str = "insufficient_quota") -> ApiProblem:
    return ApiProblem(429, message, code=code, headers={"x-should-retry": "false"})


@dataclass
class _Bucket:
    """Fills up evenly within a minute; `left` is what it held at `at`."""

    left: float
    at: float


class Rates:
    """Token buckets, one per key and kind, in this process.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._lock = threading.Lock()

    def request(self, key_id: str, limits: Limits) -> dict[str, str]:
        """Count one request.

        Args:
            key_id: who asks.
            limits: of its project.

        Returns:
            Headers that say what is left.

        Raises:
            ApiProblem: 429 with `retry-after`.
        """
        return self._take(key_id, "requests", 1, limits.requests_per_minute)

    def tokens(self, key_id: str, limits: Limits, count: int) -> dict[str, str]:
        """Count the tokens that a request may make the server write.

        Args:
            key_id: who asks.
            limits: of its project.
            count: prompt tokens, and the longest answer times the number of answers.

        Returns:
            Headers that say what is left.

        Raises:
            ApiProblem: 429 with `retry-after`; one that says not to retry if `count` is more than a whole minute's.
        """
        most = limits.tokens_per_minute
        if count > most:
            raise ApiProblem(
                429,
                f"Request too large: limit {most:,} tokens per minute, requested {count:,}. "
                "Ask for shorter or fewer answers.",
                code="rate_limit_exceeded",
                type="tokens",
                headers={"x-should-retry": "false"},
            )
        return self._take(key_id, "tokens", count, most)

    def _take(self, key_id: str, kind: str, amount: int, per_minute: int) -> dict[str, str]:
        with self._lock:
            bucket = self._filled(key_id, kind, per_minute)
            enough = bucket.left >= amount
            if enough:
                bucket.left -= amount
            left = bucket.left
        headers = {
            f"x-ratelimit-limit-{kind}": str(per_minute),
            f"x-ratelimit-remaining-{kind}": str(int(left)),
            f"x-ratelimit-reset-{kind}": f"{(per_minute - left) * 60 / per_minute:.3f}s",
        }
        if enough:
            return headers
        wait = (amount - left) * 60 / per_minute
        raise ApiProblem(
            429,
            f"Rate limit reached for {kind}: limit {per_minute:,} per minute. Please try again in {wait:.1f}s.",
            code="rate_limit_exceeded",
            type=kind,
            headers=headers | {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))},
        )

    def _filled(self, key_id: str, kind: str, per_minute: int) -> _Bucket:
        """The bucket as it is now."""
        moment = self._clock()
        if len(self._buckets) > _FORGET_ABOVE:
            # After a minute a bucket is full, which is what a new one is.
            self._buckets = {name: old for name, old in self._buckets.items() if moment - old.at < 60}
        bucket = self._buckets.setdefault((key_id, kind), _Bucket(float(per_minute), moment))
        bucket.left = min(float(per_minute), bucket.left + (moment - bucket.at) * per_minute / 60)
        bucket.at = moment
        return bucket
