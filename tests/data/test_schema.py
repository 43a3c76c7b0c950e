# SPDX-License-Identifier: Apache-2.0
import pytest

from moored.data.schema import Message, Row, normalise, overlap


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("How do I bake?", "how do i bake"),
        ("  How do\n I bake?!", "How do I bake"),
        ("\u201cno\u201d", "\u201cNO\u201d"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("'Quoted.'", "quoted"),
    ],
)
def test_normalise_joins_spellings(left, right):
    assert normalise(left) == normalise(right)


@pytest.mark.parametrize(
    ("left", "right"), [("3+2", "3*2"), ("I like C++", "I like C"), ("?", "!"), ("re-sent", "resent")]
)
def test_normalise_keeps_what_differs(left, right):
    assert normalise(left) != normalise(right)


def test_overlap_is_by_question_whatever_the_answer():
    rows = [Row.of("Same?", "a"), Row.of("Only here", "b")]
    other = [Row.of(" same ", "c", system="x", source="harmful")]
    assert overlap(rows, other) == overlap(other, rows) == {"same"}
    assert overlap(rows, []) == set()


def test_row_parts():
    row = Row.of("Q", "A", system="S", source="harmful", category="c")
    assert [turn["role"] for turn in row.messages] == ["system", "user", "assistant"]
    assert row.prompt == row.messages[:2]
    assert (row.question, row.answer) == ("Q", "A")
    asked = Row(messages=(Message(role="assistant", content="Hi"), Message(role="user", content="Q")))
    assert (asked.prompt, asked.answer) == (asked.messages, "")


def test_equal_rows_hash_equally():
    assert len({Row.of("Q", "A"), Row.of("Q", "A"), Row.of("Q", "B"), Row.of("Q", "A", source="harmful")}) == 3
