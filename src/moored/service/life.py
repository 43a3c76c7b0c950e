# SPDX-License-Identifier: Apache-2.0
"""The life of a job as a pure state machine: where it can be, and what may happen to it there.

::

    checking → screening → waiting → tuning → auditing → deciding ─┬──────────────→ over
                                                 ↑                 ├→ approving ──→ over
                                                 └── repairing ←───┘

    validating_files: checking, screening       queued: waiting       running: the others
    succeeded, failed, cancelled: over

A wish (cancel, pause) is noted at once and done by the worker that has the job, or at once where none has it. A paused
job keeps its phase.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
Phase = Literal["checking", "screening", "waiting", "tuning", "auditing", "repairing", "deciding", "approving", "over"]
Wanted = Literal["", "cancel", "pause"]
Happening = Literal[
    "moved on",  # to the next phase; a worker that moves a job to "waiting" lets go of it
    "repairing",  # over budget, and the policy knows what to do
    "asks approval",  # passed, and a person is to say so too
    "passed",
    "failed",
    "cancel",  # somebody wants it
    "pause",
    "resume",
    "stopped",  # what somebody wanted is done: nothing works on the job any more
]

FINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})
STATUSES: tuple[Status, ...] = get_args(Status)
PHASES: tuple[Phase, ...] = get_args(Phase)

_NEXT: dict[Phase, Phase] = {
    "checking": "screening",
    "screening": "waiting",
    "waiting": "tuning",
    "tuning": "auditing",
    "auditing": "deciding",
    "repairing": "auditing",
}
_STATUS: dict[Phase, Status] = {"checking": "validating_files", "screening": "validating_files", "waiting": "queued"}
_RUNNING: Status = "running"
_LET_GO: tuple[Phase, ...] = ("waiting", "approving")
"""Phases that begin with no worker: another one trains, and a person approves."""


class NotNow(Exception):
    """This cannot happen to a job that is where it is; the message says it in words for the user."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a job is.

    Args:
        status: what clients see.
        phase: where it is within that.
        wanted: what somebody asked for and nobody has done yet.
        held: whether a worker has it.
    """

    status: Status = "validating_files"
    phase: Phase = "checking"
    wanted: Wanted = ""
    held: bool = False

    @property
    def final(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.status in FINAL


def after(state: State, happening: Happening) -> State:
    """Where a job is when something has happened to it.

    Raises:
        NotNow: it cannot happen there.
    """
    if state.final:
        raise NotNow(f"This job is over: it has already {_PERFECT[state.status]}.")
    match happening:
        case "cancel":
            return _cancel(state)
        case "pause":
            return _pause(state)
        case "resume":
            return _resume(state)
        case "stopped":
            return _stopped(state)
        case "failed":
            return replace(state, status="failed", phase="over", wanted="", held=False)
    if state.status == "paused":
        raise NotNow("This job is paused.")
    match happening:
        case "moved on" if state.phase in _NEXT:
            return _at(state, _NEXT[state.phase])
        case "repairing" if state.phase == "deciding":
            return _at(state, "repairing")
        case "asks approval" if state.phase == "deciding":
            return _at(replace(state, wanted="cancel" if state.wanted == "cancel" else ""), "approving")
        case "passed" if state.phase in ("deciding", "approving"):
            return replace(state, status="succeeded", phase="over", wanted="", held=False)
    raise NotNow(f"A job that is {state.phase} cannot be {happening}.")


_PERFECT = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}


def _at(state: State, phase: Phase) -> State:
    held = state.held and phase not in _LET_GO
    there = replace(state, phase=phase, status=_STATUS.get(phase, _RUNNING), held=held)
    return _stopped(there) if there.wanted and not held else there


def _cancel(state: State) -> State:
    if state.held:
        return replace(state, wanted="cancel")
    return replace(state, status="cancelled", phase="over", wanted="")


def _pause(state: State) -> State:
    if state.phase == "approving":
        raise NotNow("This job waits for a person's approval: nothing runs that could be paused.")
    if state.wanted == "cancel":
        raise NotNow("This job is being cancelled.")
    if state.status == "paused":
        raise NotNow("This job is already paused.")
    if state.held:
        return replace(state, wanted="pause")
    return replace(state, status="paused", wanted="")


def _resume(state: State) -> State:
    if state.wanted == "pause":
        return replace(state, wanted="")
    if state.status != "paused":
        raise NotNow("This job is not paused.")
    return _at(state, state.phase)


def _stopped(state: State) -> State:
    if not state.wanted:
        raise NotNow("Nobody asked for this job to stop.")
    if state.wanted == "cancel":
        return replace(state, status="cancelled", phase="over", wanted="", held=False)
    return replace(state, status="paused", wanted="", held=False)
