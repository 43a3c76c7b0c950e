# SPDX-License-Identifier: Apache-2.0
"""`ExactAnswer`: label words, numbers and texts."""

import pytest

from moored.errors import ConfigError
from moored.judges.base import Exchange
from moored.judges.exact import ExactAnswer

LABELS = ("Negative", "Positive")


def judged(answer: str, reference: str, labels: tuple[str, ...] = ()):
    return ExactAnswer(labels=labels).judge([Exchange(prompt="?", answer=answer, reference=reference)])[0]


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("Positive", "Positive", 1),
        ("positive", "Positive", 1),
        ("  Positive.", "Positive", 1),
        ("The sentiment is **positive**.", "Positive", 1),
        ("positive, not negative", "Positive", 1),
        ("Positive. It is never negative.", "Positive", 1),
        ("Positive positive positive", "Positive", 1),
        ("Negative", "Positive", 0),
        ("Negative. Positive", "Positive", 0),
        ("negative or positive", "Negative", 0),
        ("negative or positive", "Positive", 0),
        ("negative/positive", "Negative", 0),
        ("Negative, Positive", "Negative", 0),
        ("both negative and positive", "Negative", 0),
        ("not positive", "Positive", 0),
        ("It isn't positive", "Positive", 0),
        ("positively", "Positive", 0),
        ("I can't help with that.", "Positive", 0),
        ("", "Positive", 0),
        ("   ", "Positive", 0),
    ],
)
def test_labels(answer, reference, value):
    assert judged(answer, reference, LABELS).value == value


def test_a_longer_label_is_not_read_as_the_shorter():
    labels = ("good", "very good")
    assert judged("very good", "very good", labels).value == 1
    assert judged("very good", "good", labels).value == 0


def test_a_label_of_several_words_and_marks():
    labels = ("Sci/Tech", "World")
    assert judged("This is Sci/Tech.", "Sci/Tech", labels).value == 1


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("42", "42", 1),
        ("#### 42", "3 + 39 = 42\n#### 42", 1),
        ("20 + 22 = 42", "#### 42", 1),
        ("The final answer is: $1,000.00.", "#### 1000", 1),
        ("The answer is 42. I checked it 3 times.", "#### 42", 1),
        ("-5", "5", 0),
        ("So 42 apples, or 43", "#### 42", 0),
        ("4.2", "42", 0),
        ("no idea", "42", 0),
        ("", "42", 0),
    ],
)
def test_numbers(answer, reference, value):
    assert judged(answer, reference).value == value


@pytest.mark.parametrize(("answer", "value"), [("Paris", 1), (" paris. ", 1), ("The capital is Paris", 0), ("Lyon", 0)])
def test_texts(answer, value):
    assert judged(answer, "Paris").value == value


def test_numbers_in_a_text_do_not_make_it_a_number():
    assert judged("room 7", "in room 7").value == 0
    assert judged("In room 7!", "in room 7").value == 1


@pytest.mark.parametrize("labels", [(), LABELS])
def test_without_reference_nothing_is_judged(labels):
    got = judged("Positive", " ", labels)
    assert not got.judged
    assert got.reason


def test_a_reference_that_is_no_label_is_not_judged():
    got = judged("Positive", "Neutral", LABELS)
    assert not got.judged
    assert "Neutral" in got.reason


@pytest.mark.parametrize("labels", [("",), ("!",), ("Yes", "yes"), ("a", "a")])
def test_bad_labels(labels):
    with pytest.raises(ConfigError, match="labels"):
        ExactAnswer(labels=labels)


def test_order_is_kept_and_every_verdict_has_a_reason():
    answers = ["Positive", "", "Negative", "both"]
    got = ExactAnswer(labels=LABELS).judge([Exchange(prompt="", answer=a, reference="Positive") for a in answers])
    assert [v.value for v in got] == [1, 0, 0, 0]
    assert all(v.reason and v.judge == "exact_answer/1" for v in got)
