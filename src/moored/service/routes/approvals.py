# SPDX-License-Identifier: Apache-2.0
"""`/v1/fine_tuning/jobs/{id}/approve`, `/refuse` and `/override`: our own, for keys of operators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from moored.service.approvals import Offices
from moored.service.database import Model
from moored.service.parts import Here, Who
from moored.service.routing import Route

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["moored"], route_class=Route)

JobId = Annotated[str, Path(description="id of a fine-tuning job")]


class Ruling(BaseModel):
    """What a person decides, and about which weights."""

    model_config = ConfigDict(extra="forbid")

    weights_sha256: str = Field(description="as the report card shows it; other weights are not decided about")
    reason: str = Field(default="", description="for the audit log and the report card, which the user reads")


@router.post("/{job_id}/approve")
def approve(job_id: JobId, ruling: Ruling, here: Here, who: Who) -> dict[str, Any]:
    """Let a model that passed its gate be served."""
    offices = Offices(settings=here.settings, database=here.database)
    return _said(offices.approve(job_id, who, sha256=ruling.weights_sha256, reason=ruling.reason))


@router.post("/{job_id}/refuse")
def refuse(job_id: JobId, ruling: Ruling, here: Here, who: Who) -> dict[str, Any]:
    """Refuse a model that waits for a person."""
    offices = Offices(settings=here.settings, database=here.database)
    return _said(offices.refuse(job_id, who, sha256=ruling.weights_sha256, reason=ruling.reason))


@router.post("/{job_id}/override")
def override(job_id: JobId, ruling: Ruling, here: Here, who: Who) -> dict[str, Any]:
    """Serve a model that was refused. It needs a reason, which stands on the card from then on."""
    offices = Offices(settings=here.settings, database=here.database)
    return _said(offices.override(job_id, who, sha256=ruling.weights_sha256, reason=ruling.reason))


def _said(model: Model) -> dict[str, Any]:
    return {
        "object": "moored.ruling",
        "job": model.job_id,
        "model": model.id,
        "state": model.state,
        "weights_sha256": model.sha256,
    }
