# SPDX-License-Identifier: Apache-2.0
"""The aligned start of a policy is made before the first job."""

from __future__ import annotations

import logging
from copy import deepcopy

import pytest

from moored.service.policy import Policy
from moored.service.preparing import Preparing
from moored.service.starts import start_of
from moored.study.store import Store
from service.job_server import TREE, Bench


class Ahead:
    """A server without jobs; a job's own worker is not needed to make a start."""

    def __init__(self, bench):
        self.bench, self.tree = bench, deepcopy(TREE)
        self.preparing = Preparing(
            database=bench.database, pipeline=bench.pipeline(), policy=lambda: Policy.model_validate(self.tree)
        )

    def look(self):
        """Once, and wait for what it started."""
        self.preparing.look()
        for each in self.bench.launcher.running.values():
            each.thread.join()

    def start(self):
        store = Store(self.bench.settings.store)
        try:
            return start_of(Policy.model_validate(self.tree), "tiny", store)
        finally:
            store.close()


@pytest.fixture
def ahead(tmp_path):
    return Ahead(Bench.at(tmp_path / "home"))


def test_a_start_is_made_once_and_the_first_job_finds_it(ahead):
    assert ahead.start() is None
    ahead.preparing.look()
    ahead.look()  # while it runs
    assert ahead.start() is not None
    ahead.look()
    assert len(ahead.bench.launcher.started) == 1
    job_id = ahead.bench.job()
    ahead.bench.worker().run(once=True)
    assert ahead.bench.read(job_id).status == "succeeded"
    assert not [said for said in ahead.bench.said(job_id) if "aligned model" in said or "Auditing the start" in said]


def test_a_job_that_waits_goes_first(ahead):
    ahead.bench.job(status="queued", phase="waiting")
    ahead.look()
    assert ahead.bench.launcher.started == []


def test_one_that_cannot_be_made_is_said_once_and_tried_again_by_the_next_process(ahead, caplog):
    ahead.tree["models"]["tiny"]["align"]["training"]["lr"] = 1e30
    for _ in range(3):
        ahead.look()
    assert len(ahead.bench.launcher.started) == 1
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert [" cannot be made, and no job on it will train: " in each for each in said] == [True]
    again = Ahead(ahead.bench)
    again.tree = ahead.tree
    again.look()
    assert len(ahead.bench.launcher.started) == 2
