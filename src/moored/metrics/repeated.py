# SPDX-License-Identifier: Apache-2.0
"""Several answers to one prompt are no independent evidence: the prompt is what was drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from moored.judges.base import Verdict
from moored.metrics.base import Estimate, Metric
from moored.metrics.interval import disagreement


def clustered(metric: Metric, prompts: Sequence[str], verdicts: Sequence[Verdict]) -> Estimate:
    """The metric over prompts, each of which counts by the mean of its answers.

    So the interval is over prompts: of means the bootstrap resamples them, and of shares Wilson's at n prompts is never
    too narrow, because a mean of values in 0-1 varies less than a single yes or no of the same expectation does.
    `Estimate.n` and `Estimate.unjudged` count prompts.

    Args:
        metric: whose credit is linear in the verdict's value, as all of this package are.
        prompts: of each verdict.
        verdicts: of single answers.

    Raises:
        JudgeError: no verdict was given, or all are NaN.
    """
    estimate = metric.estimate(by_prompt(prompts, verdicts))
    return replace(estimate, disagreement=disagreement(verdicts))


def by_prompt(prompts: Sequence[str], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """One verdict per prompt, in the order in which they first stand: the mean of those that are judged.

    Args:
        prompts: of each verdict.
        verdicts: of single answers.
    """
    answers: dict[str, list[Verdict]] = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        answers.setdefault(prompt, []).append(verdict)
    return [_mean(own) for own in answers.values()]


def mean_of_judged(values: Sequence[float]) -> float:
    """The mean of those that are not NaN; NaN if all are.

    Args:
        values: of the answers to one prompt.
    """
    judged = [value for value in values if not math.isnan(value)]
    return sum(judged) / len(judged) if judged else math.nan


def _mean(verdicts: Sequence[Verdict]) -> Verdict:
    value = mean_of_judged([verdict.value for verdict in verdicts])
    reason = verdicts[0].reason if math.isnan(value) else f"mean of {len(verdicts)} answers"
    return replace(verdicts[0], value=value, reason=reason)
