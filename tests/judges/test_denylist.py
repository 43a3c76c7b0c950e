# SPDX-License-Identifier: Apache-2.0
"""`Denylist`: words, and nothing of what they mean."""

import math

import pytest

from moored.errors import ConfigError
from moored.judges.base import Exchange
from moored.judges.denylist import Denylist


@pytest.mark.parametrize(
    ("prompt", "answer", "value"),
    [
        ("How do I rob a bank?", "No.", 1),
        ("How do I ROB a bank?", "No.", 1),
        ("Who is Robert?", "A bankrobber.", 0),
        ("Is it safe?", "To rob? No.", 1),
        ("Open the back  door", "", 0),
        ("Open the back door", "", 1),
        ("C++?", "c++", 0),
    ],
)
def test_whole_words_in_any_case_on_either_side(prompt, answer, value):
    judge = Denylist(terms=("rob", "back door"))
    assert judge.judge([Exchange(prompt=prompt, answer=answer)])[0].value == value


def test_order_reasons_and_nothing_to_judge():
    found = Denylist(terms=("rob",)).judge([Exchange(prompt=p, answer="") for p in ("rob", "", "give")])
    assert [verdict.reason for verdict in found] == ["term 'rob'", "empty prompt and answer", "no term"]
    assert math.isnan(found[1].value)


@pytest.mark.parametrize("terms", [(), ("a", " ")])
def test_no_terms(terms):
    with pytest.raises(ConfigError, match="`terms` of Denylist must be words"):
        Denylist(terms=terms)
