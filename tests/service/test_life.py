# SPDX-License-Identifier: Apache-2.0
"""The life of a job: whatever happens in whatever order, nothing leaves its end, and nothing loses its place."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.service.life import FINAL, PHASES, Happening, NotNow, State, after

HAPPENINGS = get_args(Happening)
STATUS_OF = {
    "checking": {"validating_files"},
    "screening": {"validating_files"},
    "waiting": {"queued"},
    **{phase: {"running"} for phase in ("tuning", "auditing", "repairing", "deciding", "approving")},
    "over": FINAL,
}

events = st.lists(st.tuples(st.sampled_from(HAPPENINGS), st.booleans()), max_size=60)


def lives(happenings):
    """Every state on the way; a worker takes up the job in between where the second of a pair says so."""
    state = State()
    yield state, "", state
    for happening, taken in happenings:
        if taken and not state.final and state.status != "paused" and state.phase != "approving":
            state = State(status=state.status, phase=state.phase, wanted=state.wanted, held=True)
        before = state
        try:
            state = after(before, happening)
        except NotNow:
            continue
        yield before, happening, state


@given(events)
def test_no_sequence_leads_anywhere_else(happenings):
    for before, happening, state in lives(happenings):
        assert not before.final or happening == ""  # nothing happens to a job that is over
        assert state.phase in PHASES
        assert state.status in STATUS_OF[state.phase] | (
            {"paused"} if state.phase not in ("over", "approving") else set()
        )
        assert not (state.final and (state.wanted or state.held))
        assert not (state.status == "paused" and (state.wanted or state.held))
        assert state.held or not state.wanted  # what nobody has is done at once
        if happening in ("pause", "resume") or (happening == "stopped" and not state.final):
            assert state.phase == before.phase  # it keeps its place
        if state.status == "succeeded":
            assert before.phase in ("deciding", "approving")


@given(events)
def test_every_job_can_always_be_cancelled(happenings):
    *_, (_, _, state) = lives(happenings)
    if state.final:
        with pytest.raises(NotNow, match="This job is over"):
            after(state, "cancel")
        return
    state = after(state, "cancel")
    assert (state if state.final else after(state, "stopped")).status == "cancelled"


@pytest.mark.parametrize(
    ("state", "happening", "said"),
    [
        (State(status="paused", phase="tuning"), "moved on", "paused"),
        (State(status="paused", phase="tuning"), "pause", "already paused"),
        (State(status="running", phase="tuning", held=True), "resume", "not paused"),
        (State(status="running", phase="tuning", wanted="cancel", held=True), "pause", "being cancelled"),
        (State(status="running", phase="approving"), "pause", "approval"),
        (State(status="running", phase="tuning", held=True), "passed", "cannot be passed"),
        (State(status="running", phase="tuning", held=True), "stopped", "Nobody asked"),
        (State(status="failed", phase="over"), "resume", "already failed"),
    ],
)
def test_what_makes_no_sense_is_refused(state, happening, said):
    with pytest.raises(NotNow, match=said):
        after(state, happening)


def test_a_pause_that_was_taken_back_did_not_happen():
    asked = after(State(status="running", phase="tuning", held=True), "pause")
    assert after(asked, "resume") == State(status="running", phase="tuning", held=True)
