# SPDX-License-Identifier: Apache-2.0
"""What the service says when it cannot do what it was asked: the shape that OpenAI's clients turn into their errors.

The client repeats 408, 409, 429 and every 5xx twice unless the answer says `x-should-retry: false`, so a conflict with
the state of something (a job that is over cannot be cancelled) is a 400 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ApiProblem(Exception):
    """Raised by anything that a request reaches; `app.py` turns it into the answer.

    Args:
        status: of HTTP.
        message: one or two sentences for the user; never a path of this machine, never a secret.
        param: the parameter that is wrong, as the client spells it.
        code: a word for programs.
        type: OpenAI's kind of error; by default what goes with the status.
        headers: added to the answer.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def body(self) -> dict[str, Any]:
        """What the client reads."""
        kind = self.type or _kind(self.status)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _kind(status: int) -> str:
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return named.get(status, "server_error" if status >= 500 else "invalid_request_error")


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiProblem:
    """400: the request cannot be done as it is."""
    return ApiProblem(400, message, param, code)


def missing_file(file_id: str) -> ApiProblem:
    """404: no such file in the caller's project, whoever else's it may be."""
    return ApiProblem(404, f"No such File object: {file_id}", "id")


def missing_job(job_id: str) -> ApiProblem:
    """404: no such job in the caller's project."""
    return ApiProblem(404, f"Could not find fine tune: {job_id}", "fine_tune_id", "fine_tune_not_found")


def missing_model(model: str) -> ApiProblem:
    """404: no such model for the caller; one that has not passed the gate is not told from one that never was."""
    return ApiProblem(
        404, f"The model `{model}` does not exist or you do not have access to it.", "model", "model_not_found"
    )
