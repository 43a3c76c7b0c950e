# SPDX-License-Identifier: Apache-2.0
"""What is counted, in Prometheus' words."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy import func, select

from moored.service.database import Database, File, Job

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Bounds of the histogram of times [s]."""


class Metrics:
    """Counts of one server; two servers in one process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "moored_requests", "Requests answered", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "moored_request_seconds",
            "Time to the end of an answer",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._jobs = Gauge("moored_jobs", "Fine-tuning jobs", ("status",), registry=self.registry)
        self._files = Gauge("moored_files", "Files", ("purpose",), registry=self.registry)
        self._bytes = Gauge("moored_file_bytes", "Bytes of files", ("purpose",), registry=self.registry)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request.

        Args:
            method: of HTTP.
            route: its path with the names of its parameters, never their values.
            status: of the answer; 0 if the client went away before there was one.
            seconds: it took.
        """
        known = method if method in {"GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"} else "other"
        found = self._counters.get((known, route, status))
        if found is None:
            found = self._requests.labels(known, route, str(status)), self._seconds.labels(route)
            self._counters[known, route, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def text(self, database: Database) -> bytes:
        """Everything, as Prometheus reads it.

        Args:
            database: where jobs and files are counted now.
        """
        with database.reading() as session:
            jobs = session.execute(select(Job.status, func.count()).group_by(Job.status)).all()
            files = session.execute(
                select(File.purpose, func.count(), func.sum(File.bytes)).group_by(File.purpose)
            ).all()
        for gauge in (self._jobs, self._files, self._bytes):
            gauge.clear()
        for status, count in jobs:
            self._jobs.labels(status).set(count)
        for purpose, count, size in files:
            self._files.labels(purpose).set(count)
            self._bytes.labels(purpose).set(size)
        return generate_latest(self.registry)
