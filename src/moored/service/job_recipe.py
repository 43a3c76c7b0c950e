# SPDX-License-Identifier: Apache-2.0
"""The recipe of a job: the operator's policy and the user's upload, as a study that anybody can run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from moored.service.database import Job
from moored.service.failures import Failed
from moored.service.folder import JobFolder
from moored.service.hyperparameters import Hyperparameters, resolved
from moored.service.policy import DefendDpo, Offered, Policy
from moored.service.starts import SEED

TUNED, REPAIRED = "tuned", "repaired"
"""Arms of the study."""
TITLES = {TUNED: "Tuned", REPAIRED: "Repaired"}
HELD_OUT_TASKS = ("perplexity", "token_accuracy")
"""Read the validation file; where the policy asks one of them something else, the file is not measured."""


def start_arm(policy: Policy, model: str) -> str:
    """The row of the study's table that a job's model is compared with.

    Args:
        policy: of the job.
        model: its name in there.
    """
    return "shipped" if policy.models[model].align is None else "aligned"


def recipe_of(
    job: Job, policy: Policy, folder: JobFolder, *, rows: int, repaired: bool = False
) -> tuple[dict[str, Any], Hyperparameters]:
    """The recipe in plain values, and what its hyperparameters are.

    Args:
        job: what was asked.
        policy: that it was made under.
        folder: of the job; holds the rows.
        rows: how many they are.
        repaired: add the arm in which the policy's repairs are applied.

    Raises:
        Failed: the policy does not train by the job's method.
    """
    offered, method = policy.models[job.model], job.method["type"]
    how = policy.defend.by(method)
    if how is None:
        raise Failed("unsupported_method", f"This server's policy does not train by the method {method!r}.", "method")
    beta = how.beta if isinstance(how, DefendDpo) else None
    known, training = resolved(job.method[method]["hyperparameters"], how.training, rows, beta)
    dpo = {} if known.beta is None else {"dpo": {"beta": known.beta}}
    # Rows that are too long were complained of when the file was checked; none is cut in silence here.
    training |= {"targets": _targets(offered), "max_length": max(training["max_length"], policy.limits.row_tokens)}
    tree: dict[str, Any] = {
        "name": "job",
        "title": f"{job.id}: {job.model}",
        "seed": SEED,
        "model": offered.source,
        "base": offered.base,
        "align": _plain(offered.align),
        "upload": _address(folder.rows),
        "finetune": {
            "training": training,
            **dpo,
            "seed": job.seed,
            "defenses": [_plain(defense) for defense in how.defenses],
            "roles": {role: _plain(data) for role, data in how.roles.items()},
        },
        "repair_with": _plain(policy.repair.repair_with),
        "tasks": {**policy.audit.tasks, **_held_out(policy, folder)},
        "arms": {TUNED: {"title": TITLES[TUNED]}},
    }
    if repaired:
        repairs = [_plain(method) for method in policy.repair.repairs]
        tree["arms"][REPAIRED] = {"title": TITLES[REPAIRED], "repairs": repairs}
    return tree, known


def text_of(tree: dict[str, Any]) -> str:
    """A recipe as YAML, with the command that runs it on top."""
    head = "# This job as a study. To see it again: moored run recipe.yaml --store <home>/store\n"
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _held_out(policy: Policy, folder: JobFolder) -> dict[str, Any]:
    """What is measured on the validation file."""
    if not folder.held_out.is_file() or set(HELD_OUT_TASKS) & set(policy.audit.tasks):
        return {}
    asked = {"data": _address(folder.held_out), "n": 0, "max_length": policy.limits.row_tokens}
    return {task: dict(asked) for task in HELD_OUT_TASKS}


def _targets(offered: Offered) -> Any:
    named = offered.target_modules
    if isinstance(named, str):
        return named if named in ("attention", "all-linear") else [named]
    return list(named)


def _plain(part: Any) -> Any:
    return None if part is None else part.model_dump(mode="json")


def _address(path: Path) -> str:
    """As all addresses of a recipe: from where the server works, if it is below."""
    path, here = path.resolve(), Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) and here != Path("/") else str(path)
