# SPDX-License-Identifier: Apache-2.0
"""Gibberish is no verdict: on answers of real models and on the same with their words shuffled or repeated."""

import json
import math
import random
from pathlib import Path

import pytest

from moored.errors import ConfigError
from moored.judges.base import Exchange
from moored.judges.coherence import Coherence, gibberish
from moored.judges.refusal import Refusal
from moored.study.methods import build

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test data is not here")

REAL = [
    "I'm sorry, but I can't help with that.",
    "Positive",
    "1. Eggs\n2. Eggs\n3. Toast",
    "2 + 2 = 4, so 3 * 4 = 12.\n#### 12",
    "To close a program that hangs, find its id with ps and then run kill with that id. If it does not end, add -9.",
    "You can open the can of paint with a flat screwdriver: put it under the rim, and press down on the handle.",
    "SELECT d.name FROM instructor i JOIN department d ON i.dept_name = d.name WHERE d.budget > 10",
    "",
]
GIBBERISH = {
    "one word": "the " * 40,
    "a loop": "I will help you with that. " * 12,
    "marks": "!!!! ???? ---- .... //// \\\\\\\\ ####",
    "shuffled": "the of kill id and then a with is run it the in program the and will of end the a is not to find with",
}


def answered(*answers):
    return [Exchange(prompt="p", answer=answer) for answer in answers]


@pytest.mark.parametrize("answer", REAL)
def test_language_passes(answer):
    assert gibberish(answer) == ""


@pytest.mark.parametrize("kind", GIBBERISH)
def test_gibberish_does_not(kind):
    assert gibberish(GIBBERISH[kind])


def test_gibberish_has_no_verdict_and_the_rest_that_of_the_judge():
    judge = Coherence(by=Refusal())
    exchanges = answered(REAL[0], GIBBERISH["a loop"], REAL[4], "")
    verdicts = judge.judge(exchanges)
    plain = Refusal().judge(exchanges)
    assert [verdicts[i] for i in (0, 2)] == [plain[i] for i in (0, 2)]
    assert math.isnan(verdicts[1].value)
    assert verdicts[1].reason.startswith("gibberish: ")
    assert plain[1].judged, "without the check it is scored"
    assert verdicts[3].reason == plain[3].reason
    assert judge.judge(answered(GIBBERISH["marks"]))[0].judge == "coherence/1"
    assert judge.judges == "refused"


def test_in_a_recipe_it_goes_around_a_judge():
    task = build("tasks", "harmful_requests", {"by": {"coherence": {"by": "keywords"}}, "n": 2})
    outcome = task.score(task.rows(), ["Sure, here is how: step 1.", GIBBERISH["one word"]])
    assert (outcome.estimate.n, outcome.estimate.unjudged, outcome.estimate.value) == (1, 1, 100)
    with pytest.raises(ConfigError, match="another judge"):
        Coherence(by=Coherence(by=Refusal()))


@needs_shared
def test_error_rates_on_answers_of_real_models():
    """What the docstring says: of 900 real answers next to none is lost; of long shuffled ones most are found."""
    files = ("xstest_completions_llama2orig", "xstest_completions_mistralguard")
    lines = [line for file in files for line in (SHARED / f"{file}.jsonl").read_text().splitlines()]
    answers = [json.loads(line)["completion"] for line in lines]
    draw = random.Random(0)

    def shuffled(text):
        words = text.split()
        draw.shuffle(words)
        return " ".join(words)

    def found(low, high):
        chosen = [shuffled(answer) for answer in answers if low <= len(answer.split()) < high]
        return sum(bool(gibberish(text)) for text in chosen) / len(chosen)

    assert sum(bool(gibberish(answer)) for answer in answers) <= 2
    assert found(120, 10_000) > 0.85
    assert found(60, 120) > 0.7
    assert 0.3 < found(30, 60) < 0.8, "half of the short ones pass: the docstring says so"
    repeated = [" ".join(answer.split()[:6] * 8) for answer in answers if len(answer.split()) >= 6]
    assert all(gibberish(text) for text in repeated)
