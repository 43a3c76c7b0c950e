# SPDX-License-Identifier: Apache-2.0
"""The policy, for reading."""

from __future__ import annotations

import yaml
from fastapi import APIRouter, Response

from moored.service.console import paper
from moored.service.console.visitor import Here, Page, Who
from moored.service.redaction import redacted

router = APIRouter(route_class=Page)


@router.get("/policy")
def show(here: Here, who: Who) -> Response:
    """What the operator demands of every job, without what users may not read."""
    policy = here.policy()
    text = yaml.safe_dump(redacted(policy.plain()), sort_keys=False, allow_unicode=True, width=100)
    return paper.page("policy", visitor=who, policy=policy, text=text, complaint=here.policy.complaint)
