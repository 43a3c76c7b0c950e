# SPDX-License-Identifier: Apache-2.0
"""Jobs of a project: making one, showing it, and what its user may want of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, Select, String, bindparam, cast, select
from sqlalchemy.orm import Session

from moored.errors import unknown
from moored.service import files, hyperparameters, quota
from moored.service.claims import Told, place, state_of, tell
from moored.service.clock import now
from moored.service.database import Checkpoint, Database, Event, Job, columns_of
from moored.service.ids import new_id
from moored.service.life import NotNow, after
from moored.service.pages import Listing
from moored.service.policy import Limits, Policy
from moored.service.problems import ApiProblem, missing_job, wrong
from moored.service.tightening import tightened

FIELDS = (
    "model",
    "training_file",
    "validation_file",
    "hyperparameters",
    "method",
    "suffix",
    "seed",
    "metadata",
    "integrations",
    "safety",
)
LONGEST_SUFFIX, MOST_METADATA, LONGEST_KEY, LONGEST_VALUE = 64, 16, 64, 512
LARGEST_SEED = 2**31 - 1
METHODS = ("supervised", "dpo")
"""That can be trained here; which of them are, the policy says."""

Wish = Literal["cancel", "pause", "resume"]


def create(database: Database, policy: Policy, limits: Limits, project_id: str, body: Mapping[str, Any]) -> Job:
    """Make a job.

    Args:
        database: where it goes.
        policy: as it is now; the job keeps it.
        limits: of the project.
        project_id: whose it is.
        body: of the request.

    Raises:
        ApiProblem: 400, something in the request is wrong; 429, the project may make no more jobs now.
    """
    for name in body:
        if name not in FIELDS:
            raise wrong(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    rules = tightened(policy, body.get("safety")).model_copy(update={"limits": limits})
    made = Job(
        id=new_id("ftjob"),
        project_id=project_id,
        created_at=now(),
        model=_model(policy, body.get("model")),
        training_file=_text(body, "training_file", required=True),
        validation_file=_text(body, "validation_file") or None,
        suffix=_suffix(_text(body, "suffix")),
        seed=_seed(body.get("seed")),
        method=_method(body, policy, limits),
        given_metadata=_metadata(body.get("metadata")),
        integrations={"given": _integrations(body.get("integrations"))},
        policy=rules.plain(),
        policy_sha256=rules.sha256,
        hyperparameters={},
        result_files=[],
        safety={},
    )
    with database.writing() as session:
        for param, file_id in (("training_file", made.training_file), ("validation_file", made.validation_file)):
            if file_id is not None:
                _check_file(session, project_id, file_id, param)
        quota.room_for_job(session, limits, project_id)
        session.add(made)
        session.flush()
        tell(session, made.id, [Told(key="created", message=f"Created fine-tuning job: {made.id}")])
    return made


_MINE = Job.project_id == bindparam("project_id")
_COLUMNS = columns_of(Job, without={"policy"})  # which nobody is shown, and which is long

LISTED = Listing(_COLUMNS, _MINE, by=(Job.created_at, Job.id), identity=Job.id)
"""The jobs of a `project_id`, as `shown` takes them."""
EVENTS = Listing(columns_of(Event), Event.job_id == bindparam("job_id"), by=(Event.number, Event.id), identity=Event.id)
"""The story of a `job_id`, as `event_shown` takes it."""
CHECKPOINTS = Listing(
    columns_of(Checkpoint),
    Checkpoint.job_id == bindparam("job_id"),
    by=(Checkpoint.step, Checkpoint.id),
    identity=Checkpoint.id,
)
"""The checkpoints of a `job_id`, as `checkpoint_shown` takes them."""

_ONE = select(*_COLUMNS).where(_MINE, Job.id == bindparam("job_id"))


def of_project(project_id: str) -> Select[Any]:
    """The jobs that a project sees."""
    return select(Job).where(Job.project_id == project_id)


def with_metadata(wanted: Mapping[str, str] | None) -> list[ColumnElement[bool]]:
    """Conditions for jobs with these pairs; None: for jobs without any."""
    if wanted is None:
        return [cast(Job.given_metadata, String) == "{}"]
    return [Job.given_metadata[key].as_string() == value for key, value in wanted.items()]


def look(connection: Connection, project_id: str, job_id: str) -> Row[Any]:
    """A job of a project, as `shown` takes it; see `find`."""
    job = connection.execute(_ONE, {"project_id": project_id, "job_id": job_id}).one_or_none()
    if job is None:
        raise missing_job(job_id)
    return job


def find(session: Session, project_id: str, job_id: str) -> Job:
    """A job of a project.

    Raises:
        ApiProblem: 404, there is none that the project sees.
    """
    job: Job | None = session.scalar(of_project(project_id).where(Job.id == job_id))
    if job is None:
        raise missing_job(job_id)
    return job


def wish(database: Database, project_id: str, job_id: str, wanted: Wish) -> Job:
    """Cancel, pause or resume a job: at once where no worker has it, else as soon as that one has heard of it.

    Raises:
        ApiProblem: 404, no such job; 400, it cannot be done to a job that is where it is.
    """
    with database.writing() as session:
        session.execute(of_project(project_id).where(Job.id == job_id).with_for_update())
        job = find(session, project_id, job_id)
        try:
            state = after(state_of(job), wanted)
        except NotNow as error:
            raise wrong(str(error), "fine_tuning_job_id", "invalid_state") from error
        place(session, job, state)
        if wanted == "resume":
            job.attempts = 0
        if not state.wanted:
            said = {"cancel": "cancelled", "pause": "paused", "resume": "resumed"}[wanted]
            tell(session, job.id, [Told(key=f"{said} {now()}", message=f"The job was {said}")])
        return job


def shown(job: Job | Row[Any]) -> dict[str, Any]:
    """A job as clients see it."""
    kind = job.method["type"]
    known = {**job.method[kind]["hyperparameters"], **job.hyperparameters}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "estimated_finish": _estimated(job),
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model if job.status == "succeeded" or _overridden(job) else None,
        "organization_id": job.project_id,
        "status": job.status,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": job.result_files,
        "trained_tokens": job.trained_tokens,
        "seed": job.seed,
        "error": job.error,
        "hyperparameters": known,
        "method": {"type": kind, kind: {"hyperparameters": known}},
        "integrations": job.integrations.get("given", []),
        "metadata": job.given_metadata,
        "user_provided_suffix": job.suffix,
        "x_safety": {"phase": job.phase, "wanted": job.wanted, "policy_sha256": job.policy_sha256, **job.safety},
    }


def _estimated(job: Job | Row[Any]) -> int | None:
    """When a job that runs will be finished: never in the past, whatever was thought before."""
    return max(job.estimated_finish, now() + 1) if job.estimated_finish and job.status == "running" else None


def _overridden(job: Job | Row[Any]) -> bool:
    """Whether an operator has the model served that the gate, or a person, refused."""
    people = job.safety.get("people", [])
    return bool(people) and people[-1]["what"] == "override"


def event_shown(event: Event | Row[Any]) -> dict[str, Any]:
    """A line of a job's story as clients see it."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def checkpoint_shown(job: Row[Any]) -> Callable[[Row[Any]], dict[str, Any]]:
    """How a checkpoint of a job is shown: it has numbers and no weights, for only the audited end can be served."""

    def show(kept: Row[Any]) -> dict[str, Any]:
        model = job.fine_tuned_model or f"ft:{job.model}::{job.suffix or ''}:{job.id.rpartition('-')[2]}"
        return {
            "id": kept.id,
            "object": "fine_tuning.job.checkpoint",
            "created_at": kept.created_at,
            "fine_tuned_model_checkpoint": f"{model}:ckpt-step-{kept.step}",
            "fine_tuning_job_id": job.id,
            "step_number": kept.step,
            "metrics": kept.metrics,
        }

    return show


def _model(policy: Policy, given: Any) -> str:
    if not isinstance(given, str) or not given:
        raise wrong("Missing required parameter: 'model'.", "model", "missing_required_parameter")
    if given not in policy.models:
        said = f"Model {given} is not available for fine-tuning: {unknown('model', given, policy.models)}."
        raise wrong(said, "model", "model_not_available")
    return given


def _check_file(session: Session, project_id: str, file_id: str, param: str) -> None:
    try:
        file = files.find(session, project_id, file_id)
    except ApiProblem as error:
        raise wrong(f"invalid {param}: {file_id}", param, "file_not_found") from error
    if file.purpose != "fine-tune":
        said = f"File '{file_id}' has purpose '{file.purpose}'; upload it with purpose 'fine-tune'."
        raise wrong(said, param, "invalid_file_purpose")


def _method(body: Mapping[str, Any], policy: Policy, limits: Limits) -> dict[str, Any]:
    """The method with its hyperparameters; the older field `hyperparameters` says the same of supervised."""
    given = body.get("method")
    older = given is None
    if older:
        given = {"type": "supervised", "supervised": {"hyperparameters": body.get("hyperparameters")}}
    if not isinstance(given, Mapping):
        raise wrong("'method' must be an object with a 'type'.", "method", "invalid_type")
    kind = given.get("type")
    offered = [method for method in METHODS if policy.defend.by(method) is not None]
    if kind not in offered:
        said = f"This server does not train by the method {kind!r}; it can do {', '.join(offered)}."
        if kind in METHODS:
            said += " Its policy does not say how such a job is defended (`defend.dpo`)."
        raise wrong(said, "method.type", "unsupported_method")
    param = "hyperparameters" if older else f"method.{kind}.hyperparameters"
    own = given.get(kind) or {}
    asked = own.get("hyperparameters") if isinstance(own, Mapping) else own
    if asked is not None and not isinstance(asked, Mapping):
        raise wrong(f"'{param}' must be an object.", param, "invalid_type")
    return {"type": kind, kind: {"hyperparameters": hyperparameters.checked(asked or {}, limits, param, kind)}}


def _text(body: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    value = body.get(name)
    if required and not value:
        raise wrong(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    if value is not None and not isinstance(value, str):
        raise wrong(f"'{name}' must be text.", name, "invalid_type")
    return value or ""


def _suffix(given: str) -> str | None:
    if len(given) > LONGEST_SUFFIX:
        said = f"The suffix has {len(given)} characters; at most {LONGEST_SUFFIX} are taken."
        raise wrong(said, "suffix", "string_above_max_length")
    if not given.isprintable():
        raise wrong("The suffix holds characters that cannot be seen.", "suffix", "invalid_value")
    return given or None


def _seed(given: Any) -> int:
    if given is None:
        return secrets.randbelow(LARGEST_SEED)
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= LARGEST_SEED:
        raise wrong(f"'seed' must be a whole number from 0 to {LARGEST_SEED}.", "seed", "invalid_value")
    return given


def _metadata(given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise wrong("'metadata' must be an object of texts.", "metadata", "invalid_type")
    if len(given) > MOST_METADATA:
        said = f"The metadata has {len(given)} keys; at most {MOST_METADATA} are taken."
        raise wrong(said, "metadata", "object_above_max_properties")
    for key, value in given.items():
        if not isinstance(value, str):
            raise wrong(f"'metadata.{key[:LONGEST_KEY]}' must be text.", "metadata", "invalid_type")
        if not 0 < len(key) <= LONGEST_KEY or len(value) > LONGEST_VALUE:
            said = f"Keys of the metadata have 1 to {LONGEST_KEY} characters, and values at most {LONGEST_VALUE}."
            raise wrong(said, "metadata", "string_above_max_length")
    return dict(given)


def _integrations(given: Any) -> list[dict[str, Any]]:
    """Kept by name and shown again; this server sends nothing anywhere."""
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(each, Mapping) for each in given):
        raise wrong("'integrations' must be a list of objects with a 'type'.", "integrations", "invalid_type")
    if any(each.get("type") != "wandb" for each in given):
        raise wrong("The only integration that is known is 'wandb'.", "integrations", "invalid_value")
    return [dict(each) for each in given]
