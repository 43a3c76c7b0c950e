# SPDX-License-Identifier: Apache-2.0
"""`Speech`: bits that together are the whole text, cut before a stop string, never inside a character."""

import random

import pytest

from moored.data.tiny import tiny_tokenizer
from moored.hf.speech import Speech

TOKENIZER = tiny_tokenizer()


def decode(tokens):
    return TOKENIZER.decode(tokens, skip_special_tokens=True)


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def spoken(tokens, stops=(), **options):
    """The bits, how many tokens they cover, and whether a stop came."""
    speech, bits, covered = Speech(decode, stops, **options), [], 0
    for token in tokens:
        heard = speech.hear(token)
        bits.append(heard.text)
        covered += heard.tokens
        if heard.stopped:
            return bits, covered, True
    heard = speech.end()
    return [*bits, heard.text], covered + heard.tokens, heard.stopped


@pytest.mark.parametrize("seed", range(20))
def test_bits_of_any_tokens_are_the_decoded_whole(seed):
    tokens = random.Random(seed).choices(range(len(TOKENIZER)), k=200)
    bits, covered, _ = spoken(tokens)
    assert "".join(bits).rstrip("\ufffd") == decode(tokens).rstrip("\ufffd")
    assert covered == len(tokens)


def test_a_character_of_several_tokens_comes_whole():
    text = "naïve 🙂 日本語 ok"
    bits, _, _ = spoken(ids(text))
    assert "".join(bits) == text
    assert not any("\ufffd" in bit for bit in bits)
    assert len(ids("🙂")) == 4
    assert spoken(ids("ok 🙂")[:-1])[0][-1] == ""  # half a character at the end is left out
    assert "".join(spoken(ids("ok 🙂")[:-1])[0]) == "ok "


@pytest.mark.parametrize("stop", ["river", "er ba", "r", "🙂", "k here"])
def test_a_stop_string_is_found_across_tokens_and_is_in_no_bit(stop):
    text = "the river bank here 🙂 and there"
    bits, covered, stopped = spoken(ids(text), (stop, "never comes"))
    assert stopped
    assert "".join(bits) == text[: text.index(stop)]
    kept = ids(text)[:covered]
    assert len(decode(kept).rstrip("\ufffd")) >= text.index(stop) > len(decode(kept[:-1]).rstrip("\ufffd"))


def test_the_earliest_of_several_stop_strings_counts_and_what_only_begins_like_one_is_said():
    assert "".join(spoken(ids("one two three"), ("three", "two"))[0]) == "one "
    bits, _, stopped = spoken(ids("one tw"), ("two",))
    assert ("".join(bits), stopped) == ("one tw", False)
    assert "".join(spoken(ids("a tx two"), ("two",))[0]) == "a tx "


def test_white_space_in_front_can_be_left_out():
    assert "".join(spoken(ids(" \n yes no "), bare=True)[0]) == "yes no "
    assert "".join(spoken(ids(" yes"))[0]) == " yes"


def test_bytes_that_never_become_a_character_do_not_hold_up_the_rest():
    byte = ids("🙂")[0]
    speech = Speech(decode)
    said = "".join(speech.hear(token).text for token in [byte] * 40)
    assert 20 <= len(said) <= 40
    assert set(said) == {"\ufffd"}
