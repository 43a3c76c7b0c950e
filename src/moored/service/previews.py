# SPDX-License-Identifier: Apache-2.0
"""What the screen finds in a file: as a job on it found it, or, before there is one, under the policy as it is now."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from moored.data.schema import Row
from moored.service import dialect
from moored.service.blobs import Blobs
from moored.service.database import File, Job
from moored.service.folder import JobFolder
from moored.service.policy import Policy
from moored.service.problems import wrong

if TYPE_CHECKING:
    from moored.service.parts import Parts

LARGEST = 8 << 20
"""Of a file that is looked at while somebody waits [bytes]."""
KEPT = 64


@dataclass
class Previews:
    """What was found in files lately, in this process: by the hash of the file and the version of the policy."""

    found: OrderedDict[tuple[str, str], dict[str, Any]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """One file at a time: a screen takes a processor for itself."""


def screening_of(here: Parts, file: File, policy: Policy) -> tuple[dict[str, Any], str | None]:
    """What the screen finds in a file, as plain JSON, and the id of the job that found it, if one did.

    Args:
        here: the parts of the server.
        file: for fine-tuning.
        policy: as it is now. Its judge is left out: it takes a model, and belongs into a job.

    Raises:
        ApiProblem: 400, the file is too large to look at while somebody waits.
    """
    with here.database.reading() as session:
        on_it = select(Job.id).where(Job.training_file == file.id, Job.project_id == file.project_id)
        newest = session.scalars(on_it.order_by(Job.created_at.desc(), Job.id.desc())).all()
    for job_id in newest:
        found = JobFolder(here.settings.job(job_id)).read_json("screening.json")
        if found is not None:
            return found, job_id
    if file.bytes > LARGEST:
        raise wrong("This file is too large to be screened while you wait: a job on it screens it first.")
    return _screened(here, file, policy), None


def lines_of(blobs: Blobs, file: File, wanted: Collection[int]) -> dict[int, str]:
    """What some lines of a file ask, by line; nothing of a file that is too large to be read while somebody waits.

    Args:
        blobs: where its bytes are.
        file: that was checked.
        wanted: lines, from 1.
    """
    path = blobs.path(file.sha256)
    if not wanted or file.bytes > LARGEST or not path.is_file():
        return {}
    rows = islice(dialect.read(path, name=file.filename), max(wanted))
    return {
        number: row.question if isinstance(row, Row) else row.preferred.question
        for number, row in enumerate(rows, start=1)
        if number in wanted
    }


def _screened(here: Parts, file: File, policy: Policy) -> dict[str, Any]:
    from moored.service.wiring import seams_of

    unjudged = policy.model_copy(update={"screen": policy.screen.model_copy(update={"judge": None})})
    known = (file.sha256, unjudged.sha256)
    with here.previews.lock:
        if known not in here.previews.found:
            seams = seams_of(here.settings, here.database)
            path = seams.bytes_of(file.sha256)
            here.previews.found[known] = seams.screen(seams.rows(path), unjudged, None).record()
            while len(here.previews.found) > KEPT:
                here.previews.found.popitem(last=False)
        return here.previews.found[known]
