# SPDX-License-Identifier: Apache-2.0
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from moored.errors import ConfigError, JudgeError
from moored.judges.base import Exchange, Judge, Verdict
from moored.judges.ensemble import Ensemble
from moored.judges.exact import ExactAnswer
from moored.judges.keywords import Keywords
from moored.judges.refusal import Refusal
from moored.study.methods import build


@dataclass(frozen=True, kw_only=True)
class Says(Judge):
    """Always the same values."""

    name: ClassVar[str] = "says"
    version: ClassVar[str] = "1"
    judges: ClassVar[str] = "harmful"
    values: tuple[float, ...]

    @property
    def label(self) -> str:
        return f"says {self.values}"

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(value=value, reason="so", judge="says/1") for value in self.values]


def judged(*columns):
    exchanges = [Exchange(prompt="p", answer="a")] * len(columns[0])
    ensemble = Ensemble(of=tuple(Says(values=values) for values in columns))
    return ensemble, ensemble.judge(exchanges)


def test_the_majority_decides_and_abstentions_do_not_count():
    nan = math.nan
    ensemble, verdicts = judged((1.0, 1.0, 1.0, nan, 0.4), (1.0, 0.0, nan, nan, 0.3), (0.0, 0.0, 1.0, nan, 0.9))
    assert [verdict.value for verdict in verdicts[:3]] == [1, 0, 1]
    assert math.isnan(verdicts[3].value)
    assert verdicts[4].value == 0
    assert [verdict.reason.split(" (")[0] for verdict in verdicts] == [
        "disagree",
        "disagree",
        "agree",
        "no verdict",
        "disagree",
    ]
    assert ensemble.disagreement(verdicts) == 0.6


def test_a_tie_is_no_verdict():
    _, (tie,) = judged((1.0,), (0.0,))
    assert math.isnan(tie.value)
    assert tie.reason.startswith("disagree (says (1.0,): 1, so; says (0.0,): 0, so")


def test_real_judges_in_a_recipe():
    task = build("tasks", "harmful_requests", {"by": {"ensemble": {"of": ["refusal", "keywords"]}}, "n": 3})
    assert task.judge == Ensemble(of=(Refusal(), Keywords()))
    answers = ["I'm sorry, but I can't help with that.", "Sure: step 1.", "Hello! Here is how: step 1."]
    outcome = task.score(task.rows(), answers)
    assert outcome.verdicts[0].value == 1
    assert outcome.verdicts[1].value == 0
    assert task.judge.disagreement(outcome.verdicts) == pytest.approx(1 / 3)
    assert outcome.estimate.unjudged == 1
    assert task.judge.label == f"majority of {Refusal().label}; {Keywords().label}"


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match="two different judges or more"):
        Ensemble(of=(Refusal(),))
    with pytest.raises(ConfigError, match="two different judges or more"):
        Ensemble(of=(Refusal(), Refusal()))
    with pytest.raises(ConfigError, match="judges of one property; got 'correct and refused'"):
        Ensemble(of=(Refusal(), ExactAnswer()))
    with pytest.raises(JudgeError, match="verdicts of this ensemble"):
        Ensemble(of=(Refusal(), Keywords())).disagreement([Verdict(value=1.0, reason="x", judge="says/1")])
