# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from moored.data.schema import Message
from moored.errors import DataError
from moored.transcript import Transcript


def chats(*questions):
    return [[Message(role="user", content=question)] for question in questions]


class Model:
    """Answers in capitals, backwards; breaks after so many."""

    def __init__(self, lasts=100):
        self.asked, self.lasts = [], lasts

    def __call__(self, prompts, found):
        answers = [prompt[-1]["content"].upper() for prompt in prompts]
        for number in reversed(range(len(prompts))):
            if len(self.asked) == self.lasts:
                raise KeyboardInterrupt
            self.asked.append(prompts[number][-1]["content"])
            found(number, answers[number])
        return answers


@pytest.fixture
def transcript(tmp_path):
    return Transcript(path=tmp_path / "new" / "answers.jsonl", of="model 1")


def test_what_was_answered_before_an_interruption_is_not_asked_again(transcript):
    with pytest.raises(KeyboardInterrupt):
        transcript.answers(chats("a", "b", "c", "d"), Model(lasts=3))
    rest = Model()
    assert transcript.answers(chats("a", "b", "c", "d"), rest) == ["A", "B", "C", "D"]
    assert rest.asked == ["a"]
    assert transcript.answers(chats("a", "b", "c", "d"), Model(lasts=0)) == ["A", "B", "C", "D"]


def test_answers_that_are_only_returned_are_kept_too(transcript):
    assert transcript.answers(chats("a", "b"), lambda prompts, found: ["1", "2"]) == ["1", "2"]
    assert transcript.answers(chats("a", "b"), Model(lasts=0)) == ["1", "2"]


def test_more_prompts_in_another_order(transcript):
    transcript.answers(chats("a", "b"), Model())
    more = Model()
    assert transcript.answers(chats("c", "b", "a"), more) == ["C", "B", "A"]
    assert more.asked == ["c"]


def test_a_prompt_that_is_asked_twice_has_two_answers(transcript):
    count = iter(range(9))

    def counting(prompts, found):
        answers = [str(next(count)) for _ in prompts]
        for pair in enumerate(answers):
            found(*pair)
        return answers

    assert transcript.answers(chats("a", "a"), counting) == ["0", "1"]
    assert transcript.answers(chats("a", "a", "a"), counting) == ["0", "1", "2"]


@pytest.mark.parametrize("cut", range(1, 40, 4))
def test_a_line_that_was_cut_off_is_asked_again(transcript, cut):
    transcript.answers(chats("a", "b"), Model())
    whole = transcript.path.read_bytes()
    transcript.path.write_bytes(whole[:-cut])
    again = Model()
    assert transcript.answers(chats("a", "b"), again) == ["A", "B"]
    assert again.asked == ["a"]  # it was answered last
    assert transcript.path.read_bytes() == whole


def test_a_header_that_was_cut_off_is_written_anew(transcript):
    transcript.path.parent.mkdir()
    transcript.path.write_text('{"of": "mod')
    assert transcript.answers(chats("a"), Model()) == ["A"]
    assert json.loads(transcript.path.read_text().splitlines()[0]) == {"of": "model 1"}


def test_answers_in_any_script_survive(transcript):
    def says(prompts, found):
        return ["größer\n“新しい”\u2028 \x85"]

    (answer,) = transcript.answers(chats("a"), says)
    assert transcript.answers(chats("a"), Model(lasts=0)) == [answer] == ["größer\n“新しい”\u2028 \x85"]


def test_another_models_answers_are_refused(transcript):
    transcript.answers(chats("a"), Model())
    with pytest.raises(DataError, match="holds answers of model 1, not of model 2; name another file"):
        Transcript(path=transcript.path, of="model 2").answers(chats("a"), Model())


@pytest.mark.parametrize("text", ["no json\n", "[]\n", '{"of": "model 1"}\n{"prompt": "x"}\n', '"text"\n'])
def test_a_file_that_is_something_else_is_refused_and_kept(transcript, text):
    transcript.path.parent.mkdir()
    transcript.path.write_text(text)
    with pytest.raises(DataError, match="is not a transcript"):
        transcript.answers(chats("a"), Model())
    assert transcript.path.read_text() == text
