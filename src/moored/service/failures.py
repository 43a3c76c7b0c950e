# SPDX-License-Identifier: Apache-2.0
"""Why a job failed, in words for its user; what is for the operator alone stays apart."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from moored.errors import DataError, MooredError, StudyError


class Failed(Exception):
    """A job cannot go on.

    Args:
        code: a word for programs.
        message: for the user; no path of this machine, no secret.
        param: what of the request is wrong, if something is.
    """

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


class Diverged(StudyError):
    """The loss, the gradient or the weights are not finite any more."""


def reason(error: BaseException) -> dict[str, Any]:
    """Why a job failed, in the user's words; `detail` is for the operator alone, and may hold paths.

    Args:
        error: what ended the study.
    """
    code, message, param = _told(error)
    return {"code": code, "message": message, "param": param, "detail": f"{type(error).__name__}: {error}"}


def _told(error: BaseException) -> tuple[str, str, str | None]:
    if isinstance(error, Failed):
        return error.code, error.message, error.param
    chain = list(_chain(error))
    if any(_no_space(each) for each in chain):
        return "disk_full", "The server ran out of disk space. Its operator has to free some; then try again.", None
    if any(_out_of_memory(each) for each in chain):
        return "out_of_memory", "The training ran out of memory. Try a smaller `batch_size` or shorter rows.", None
    if isinstance(error, Diverged):
        said = "The training diverged: the loss is not a number any more. Try a smaller `learning_rate_multiplier`."
        return "training_diverged", said, "hyperparameters"
    if isinstance(error, DataError) and " /" not in f" {error}":
        said = f"The job failed due to an invalid training file. {error}"
        return "invalid_training_file", said, "training_file"
    if isinstance(error, MooredError):
        said = "The server could not carry out its policy for this job. Its operator can see why in the job's folder."
        return "server_misconfigured", said, None
    return "server_error", "The training failed for a reason of the server's. Its operator can see it there.", None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _no_space(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    said = str(error).casefold()
    return "no space left" in said or "disk is full" in said


def _out_of_memory(error: BaseException) -> bool:
    # PyTorch's own class is not imported here: on a CPU it raises a plain RuntimeError anyway.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )
