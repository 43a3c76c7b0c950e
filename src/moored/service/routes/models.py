# SPDX-License-Identifier: Apache-2.0
"""`/v1/models`. Names hold `:` and `/`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from moored.service.parts import Here, Who
from moored.service.registry import Listed
from moored.service.routing import Route

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=Route)

Name = Annotated[str, Path(description="name of a model", min_length=1, max_length=256)]


@router.get("")
def list_models(here: Here, who: Who) -> dict[str, Any]:
    """All models that the caller can chat with, and nothing that has not passed its gate."""
    return {"object": "list", "data": [_object(listed) for listed in here.registry.names(who)]}


@router.get("/{model:path}")
def retrieve(model: Name, here: Here, who: Who) -> dict[str, Any]:
    """One model."""
    return _object(here.registry.find(model, who))


@router.delete("/{model:path}")
def delete(model: Name, here: Here, who: Who) -> dict[str, Any]:
    """Take a fine-tuned model away for good."""
    here.registry.delete(model, who)
    return {"id": model, "object": "model", "deleted": True}


def _object(listed: Listed) -> dict[str, Any]:
    return {"id": listed.name, "object": "model", "created": listed.created, "owned_by": listed.owner}
