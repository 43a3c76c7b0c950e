# SPDX-License-Identifier: Apache-2.0
"""What a worker does with a job, phase by phase.

Every phase can be done again: it first writes files, whole, and then moves the job on in one transaction. A worker that
is killed in between is followed by one that does the phase again and finds most of it done.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from moored.errors import MooredError
from moored.report.record import Record
from moored.service import story
from moored.service.claims import Claim, Interrupted, Kept, Told
from moored.service.clock import now
from moored.service.database import Checkpoint, Job
from moored.service.failures import Failed
from moored.service.folder import JobFolder
from moored.service.intake import Intake
from moored.service.job_recipe import REPAIRED, TITLES, TUNED, recipe_of, start_arm, text_of
from moored.service.launchers.base import STOPPED, Away, Ended, Handle, Launcher, NoSlot
from moored.service.life import NotNow, Phase, State, Status
from moored.service.pace import Pace
from moored.service.policy import Policy
from moored.service.seams import Outcome, Seams
from moored.service.settings import ServerSettings
from moored.service.tuning import DISK_FULL
from moored.study.recipe import Recipe
from moored.study.text import read_mapping

_SECRET = re.compile(r"(?i)secret|password|api_?key|database_url|^MOORED_|^OPENAI_")


SLACK = 3
"""By which what is expected may be off before it is written down again [s]."""

log = logging.getLogger("moored.service")


@dataclass
class Followed:
    """How far a job's progress was read, and what is expected by it.

    Args:
        at: position in the file.
        pace: that it shows.
        expected: when the job will be finished, as it was written down last.
    """

    at: int = 0
    pace: Pace = field(default_factory=Pace)
    expected: int | None = None

    def news(self, expected: int | None) -> bool:
        """Whether something else is expected now; a few seconds are not worth a write."""
        if expected is None or self.expected is None:
            return expected is not self.expected
        return abs(expected - self.expected) > SLACK


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What a worker needs to work on jobs.

    Args:
        settings: of the server.
        launcher: where training runs.
        seams: the other parts.
        statuses: of the jobs that this worker is for.
        look: time between two looks at a process [s].
        grace: how long a process that is paused has to write its checkpoint [s].
        most_deaths: times in a row that a process may end without a word before the job fails.
        most_attempts: workers in a row that may take up one phase without ending it.
        stopping: set when this worker is to end.
    """

    settings: ServerSettings
    launcher: Launcher
    seams: Seams
    statuses: tuple[Status, ...] = ("validating_files", "queued", "running")
    look: float = 0.5
    grace: float = 120.0
    most_deaths: int = 3
    most_attempts: int = 20
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, claim: Claim) -> bool:
        """Work on a job until it is over, stopped, or for another worker.

        Returns:
            False if there is no slot for it now.

        Raises:
            Lost: another worker has it.
            Failed: it cannot go on.
        """
        try:
            while self._step(claim):
                pass
        except NoSlot as error:
            log.info("job %s waits: %s", claim.job_id, error)
            claim.release()
            return False
        except Away as error:
            log.warning("job %s is left as it is: %s", claim.job_id, error)
            claim.leave()
            return False
        return True

    def _step(self, claim: Claim) -> bool:
        """Do the next thing to a job; False if that was the last for this worker."""
        job = claim.job()
        if job.wanted:
            return self._stop(claim, job)
        if self.stopping.is_set():
            claim.leave()
            return False
        if job.attempts > self.most_attempts:
            raise Failed("server_error", "The server tried this job many times and never came to its end.")
        try:
            return self._phase(job.phase)(claim, job).held
        except Interrupted:
            return True

    def _phase(self, phase: str) -> Callable[[Claim, Job], State]:
        phases: dict[str, Callable[[Claim, Job], State]] = {
            "checking": self._intake.check,
            "screening": self._intake.screen,
            "waiting": self._begin,
            "tuning": self._study,
            "auditing": self._study,
            "repairing": self._repair,
            "deciding": self._decide,
        }
        return phases[phase]

    def _stop(self, claim: Claim, job: Job) -> bool:
        """End what runs for a job, and say so; False if the job is no longer this worker's."""
        running = self.launcher.find(self._folder(job).path)
        if running is not None:
            self.launcher.stop(running, grace=0.0 if job.wanted == "cancel" else self.grace)
            self._tell(claim, job, Followed())
        line = Told(key=f"paused {now()}", message="The job was paused; it goes on from where it is", level="info")
        if job.wanted == "cancel":
            line = Told(key="cancelled", message="The job was cancelled", level="warn")
        try:
            return claim.move("stopped", [line], _expected(None)).held
        except NotNow:  # it was asked to go on meanwhile
            return True

    # The study.

    def _begin(self, claim: Claim, job: Job) -> State:
        """Write the recipe, and take a slot."""
        folder = self._folder(job)
        policy = Policy.model_validate(job.policy)
        tree, known = recipe_of(job, policy, folder, rows=_lines(folder.rows))
        folder.write(folder.recipe.name, text_of(tree))
        self.launch(folder)

        def keep(session: Session, job: Job) -> None:
            job.hyperparameters = known.plain()

        return claim.move("moved on", change=keep)

    def _repair(self, claim: Claim, job: Job) -> State:
        """Add the arm with the repairs to the recipe: all but that arm is there already."""
        folder = self._folder(job)
        tree, _ = recipe_of(job, Policy.model_validate(job.policy), folder, rows=_lines(folder.rows), repaired=True)
        if REPAIRED not in Recipe.parse(read_mapping(folder.recipe)).arms:
            folder.write(folder.recipe.name, text_of(tree))
        return self._study(claim, job)

    def _study(self, claim: Claim, job: Job) -> State:
        """See the study to its end."""
        self._finished(claim, job)
        state = State(status="running", phase=_phase_of(claim.job()), held=True)
        while state.phase != "deciding" and state.held:  # the process may have gone by faster than anybody looked
            state = claim.move("moved on")
        return state

    def _finished(self, claim: Claim, job: Job) -> Record:
        """The record of the study; runs what is missing.

        Raises:
            Interrupted: somebody wants something else.
            NoSlot: not now.
            Failed: it cannot be finished.
        """
        folder = self._folder(job)
        deaths, followed = 0, Followed()
        while True:
            running = self.launcher.find(folder.path)
            record = folder.finished()
            if record is not None and running is None:
                self._tell(claim, job, followed)
                return record
            if running is None:
                running = self.launch(folder)
            ended = self._watch(claim, job, running, followed)
            if folder.finished() is not None:
                continue
            if (failure := folder.read_json("failure.json")) is not None:
                raise Failed(failure["code"], failure["message"], failure["param"])
            if ended.why:
                raise _never_began(folder, ended.why)
            if ended.code == STOPPED:  # not by this worker: a time that was up, or somebody else's need of the machine
                continue
            if ended.code == DISK_FULL:
                raise Failed("disk_full", "The server ran out of disk space. Its operator has to free some.")
            deaths += 1
            if deaths >= self.most_deaths:
                said = "The training was ended by the system several times, most likely because memory ran out."
                raise Failed("out_of_memory" if ended.code == -9 else "server_error", said)

    def launch(self, folder: JobFolder) -> Handle:
        """Run the study of a folder in a process of its own, or find the one that does already.

        Args:
            folder: holds the recipe.

        Raises:
            NoSlot: not now.
        """
        if self.launcher.find(folder.path) is None:
            folder.forget("failure.json")
        command = [sys.executable, "-m", "moored.service.tuning", str(folder.path.resolve())]
        return self.launcher.start(
            [*command, "--store", str(self.settings.store.resolve())], folder.path, _environment(os.environ)
        )

    def _watch(self, claim: Claim, job: Job, running: Handle, followed: Followed) -> Ended:
        """Tell what a process says until it ends."""
        while True:
            ended = self.launcher.poll(running)
            self._tell(claim, job, followed)
            if ended is not None:
                return ended
            here = claim.job()
            if here.wanted or self.stopping.is_set():
                raise Interrupted
            self.stopping.wait(self.look)

    def _tell(self, claim: Claim, job: Job, followed: Followed) -> None:
        """Tell what is new in the progress."""
        lines: list[Told] = []
        kept: list[Kept] = []
        measured: set[str] = set()
        for position, line in self._folder(job).events(followed.at):
            followed.at = position
            followed.pace.see(line)
            more, checkpoints = story.told(line)
            lines += more
            kept += checkpoints
            measured |= {str(line.get("row"))} if line.get("kind") == "evaluate" else set()
        expected = followed.pace.finish()
        if lines or kept or followed.news(expected):
            claim.note(lines, kept, _expected(expected))
            followed.expected = expected
        awaited = {"tuning": TITLES[TUNED], "repairing": TITLES[REPAIRED]}.get(claim.job().phase)
        if awaited in measured:
            claim.move("moved on")

    # After it.

    def _decide(self, claim: Claim, job: Job) -> State:
        """Ask the gate, and repair or end by what it says."""
        policy, folder = Policy.model_validate(job.policy), self._folder(job)
        record = self._finished(claim, job)
        start = start_arm(policy, job.model)
        arm = REPAIRED if any(each.name == REPAIRED for each in record.arms) else TUNED
        decision = self.seams.decide(record, policy, arm=arm, start=start)
        found = {
            "audit": story.audit(record, [start, TUNED, REPAIRED]),
            "decision": {**job.safety.get("decision", {}), arm: decision.record()},
        }
        made = folder.read_json("made.json")
        assert made is not None
        claim.note([story.audited(record, arm, start)], change=_noting(found))
        claim.note(change=_validated(int(made["steps"]), story.validation(record, TUNED)))
        if not decision.passed and arm == TUNED and policy.repair.repairs:
            said = f"{decision.sentence} It is repaired, and measured again."
            return claim.move("repairing", [Told(key="over budget", message=said, level="warn")])
        outcome = Outcome(
            job=claim.job(),
            policy=policy,
            folder=folder,
            record=record,
            arm=arm,
            start=start,
            decision=decision,
            weights=self.settings.store / made["arms"][arm]["folder"],
            under=_under(self.settings.store, made["arms"][arm]["start"]),
        )
        return self._end(claim, outcome, made)

    def _end(self, claim: Claim, outcome: Outcome, made: Mapping[str, Any]) -> State:
        """Keep the model, its card and the numbers, and let the job be over."""
        decision, job = outcome.decision, outcome.job
        if job.wanted == "cancel":
            raise Interrupted
        error = None if decision.passed else {"code": "safety_gate", "message": decision.sentence, "param": None}
        model = self.seams.publish(outcome, self.seams.beside(outcome))
        job.trained_tokens, job.error = int(made["tokens"]), error
        self.seams.card(job, outcome, model)
        numbers = story.result_file(made, outcome.record, outcome.arm, job.method["type"])
        self.seams.log("job.decided", job.id, {"passed": decision.passed, "sentence": decision.sentence})

        def keep(session: Session, job: Job) -> None:
            job.trained_tokens = int(made["tokens"])
            job.result_files = [self.seams.keep(session, job.project_id, f"{job.id}.csv", numbers)]
            job.error = error
            if decision.passed and not outcome.policy.gate.approval:
                job.fine_tuned_model = model.id

        told = Told(key="decided", message=decision.sentence, level="info" if decision.passed else "error")
        if not decision.passed:
            return claim.move("failed", [told], keep)
        if outcome.policy.gate.approval:
            asks = Told(key="approving", message="A person of the operator's has to approve the model")
            return claim.move("asks approval", [told, asks], keep)
        made_it = Told(key="model", message=f"New fine-tuned model created: {model.id}")
        ended = Told(key="ended", message="The job has successfully completed")
        return claim.move("passed", [told, made_it, ended], keep)

    def fail(self, claim: Claim, error: Mapping[str, Any]) -> None:
        """End a job with a reason.

        Args:
            claim: of it.
            error: code, message and param.

        Raises:
            Interrupted: somebody wants it cancelled.
            Lost: another worker has it.
        """
        said = {name: error.get(name) for name in ("code", "message", "param")}
        job = claim.job()
        job.error = said
        try:
            self.seams.card(job, None, None)
        except (OSError, MooredError):
            log.exception("job %s failed, and has no report card", job.id)

        def keep(session: Session, job: Job) -> None:
            job.error = said

        claim.move("failed", [Told(key="failed", message=str(said["message"]), level="error")], keep)

    # What it stands on.

    @property
    def _intake(self) -> Intake:
        return Intake(settings=self.settings, seams=self.seams)

    def _folder(self, job: Job) -> JobFolder:
        return JobFolder(self.settings.job(job.id))


def _never_began(folder: JobFolder, why: str) -> Failed:
    """The reason for the user; what it says of the server's machines is left to its operator."""
    said = "The machine that was to train could not begin. The server's operator can see why in the job's folder."
    failed = Failed("server_misconfigured", said)
    folder.write_json("failure.json", {"code": failed.code, "message": said, "param": None, "detail": why})
    log.error("%s: %s", folder.path.name, why)
    return failed


def _noting(found: Mapping[str, Any]) -> Callable[[Session, Job], None]:
    def keep(session: Session, job: Job) -> None:
        job.safety = {**job.safety, **found}

    return keep


def _expected(finish: int | None) -> Callable[[Session, Job], None]:
    def keep(session: Session, job: Job) -> None:
        job.estimated_finish = finish

    return keep


def _validated(step: int, metrics: Mapping[str, float]) -> Callable[[Session, Job], None]:
    """What the validation file says of the model as it was trained belongs to the last checkpoint."""

    def keep(session: Session, job: Job) -> None:
        last = session.scalar(select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step == step))
        if last is not None:
            last.metrics = {**last.metrics, **metrics}

    return keep


def _phase_of(job: Job) -> Phase:
    phase: Phase = job.phase  # type: ignore[assignment]
    return phase


def _under(store: Path, start: str) -> str:
    """The folder of the start, if it is one of the store's."""
    return str(store / start) if (store / start).is_dir() else start


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """What a process that runs on users' rows may know: nothing that looks like a secret of the server."""
    return {name: value for name, value in given.items() if not _SECRET.search(name)}
