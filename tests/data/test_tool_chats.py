# SPDX-License-Identifier: Apache-2.0
"""Rows with tools and weights: nothing of them is lost from file to labels; other rows are as before."""

import hashlib
import json

import pytest

from moored.data.chat import encode, length, render
from moored.data.load import load_rows, save_rows, to_dataset
from moored.data.schema import Message, Row, fingerprint
from moored.data.tiny import tiny_tokenizer
from moored.errors import DataError

TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = TOOLS.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
).replace(
    "\n{{ m['content'] }}",
    "\n{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}",
)
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bergen"}'}}
CALLED = '<tool_call>get_weather {"city": "Bergen"}</tool_call><|im_end|>'
CHAT = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Weather in Bergen?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
    {"role": "user", "content": "And tomorrow?"},
    {"role": "assistant", "content": "Rain too."},
]


def tokenizer_with(template=TOOLS):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def chat(*weights):
    """The chat of this page, its assistant turns with these weights (None: without)."""
    given = iter(weights)
    turns = [
        {**t, **({"weight": w} if t["role"] == "assistant" and (w := next(given)) is not None else {})} for t in CHAT
    ]
    return {"messages": turns, "tools": [WEATHER]}


def loaded(tmp_path, raw):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(raw) + "\n", encoding="utf-8")
    return load_rows(file, source="benign")[0]


def learnt(tokenizer, encoded):
    """The texts that are trained on, in order."""
    runs, inside = [], False
    for label in encoded["labels"]:
        if label != -100:
            runs = [*runs[:-1], [*runs[-1], label]] if inside else [*runs, [label]]
        inside = label != -100
    return [tokenizer.decode(run) for run in runs]


def test_rows_without_tools_and_weights_are_what_they_were():
    # Both numbers were made before `Message` had optional keys: every stage key is made of such numbers.
    rows = load_rows("synthetic:alignment", source="alignment")
    assert fingerprint(rows) == "2325e8a2b5d51683b0cb32027059bf0999692f859fe5f0fa89bc4441e03f480c"
    encoded = json.dumps([encode(tiny_tokenizer(), row, max_length=200) for row in rows[:100]])
    assert (
        hashlib.sha256(encoded.encode()).hexdigest()
        == "183f18c6eecdd1268b156d486b65819bfcf3a32f8ea08acb2ff0f7378e960e79"
    )


def test_a_file_keeps_all_of_a_chat_with_tools(tmp_path):
    row = loaded(tmp_path, chat(None, 0, 1))
    assert [turn["role"] for turn in row.messages] == [
        *("system", "user", "assistant", "tool", "assistant", "user", "assistant")
    ]
    assert row.tools == (WEATHER,)
    assert row.messages[2] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert row.messages[3]["tool_call_id"] == "c1"
    assert [turn.get("weight") for turn in row.messages] == [None, None, None, None, 0, None, 1]
    assert load_rows(save_rows([row], tmp_path / "again.jsonl"), source="benign") == [row]
    assert Row.of_record(json.loads(json.dumps(row.record()))) == row
    plain = Row(messages=row.messages)
    assert fingerprint([row]) != fingerprint([plain])


@pytest.mark.parametrize("template", [TOOLS, THINKING])
@pytest.mark.parametrize(
    ("weights", "texts"),
    [
        ((None, None, None), ["Rain too.<|im_end|>"]),
        ((0, 0, 1), ["Rain too.<|im_end|>"]),
        ((0, 1, 0), ["It rains.<|im_end|>"]),
        ((0, 1, None), ["It rains.<|im_end|>", "Rain too.<|im_end|>"]),
        (
            (1, 1, 1),
            [
                '<tool_call>get_weather {"city": "Bergen"}</tool_call><|im_end|>',
                "It rains.<|im_end|>",
                "Rain too.<|im_end|>",
            ],
        ),
        ((1, 0, 0), [CALLED]),
    ],
)
def test_the_loss_is_on_the_turns_that_have_weight(tmp_path, template, weights, texts):
    tokenizer = tokenizer_with(template)
    encoded = encode(tokenizer, loaded(tmp_path, chat(*weights)), max_length=400)
    assert learnt(tokenizer, encoded) == texts
    assert all(label in (-100, token) for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True))


def test_a_weight_on_the_final_turn_alone_changes_no_token(tmp_path):
    tokenizer = tokenizer_with()
    row, same = (loaded(tmp_path, chat(*weights)) for weights in ((None, None, None), (0, 0, 1)))
    assert encode(tokenizer, row, max_length=400) == encode(tokenizer, same, max_length=400)


def test_a_call_can_be_the_answer(tmp_path):
    tokenizer = tokenizer_with()
    row = loaded(tmp_path, {"messages": CHAT[:3], "tools": [WEATHER]})
    assert row.calls == [CALL]
    assert row.answer == ""
    assert row.prompt == row.messages[:2]
    assert learnt(tokenizer, encode(tokenizer, row, max_length=400))[0].startswith("<tool_call>get_weather")
    assert row.reworded(question="Q").messages[2] == row.messages[2]
    assert to_dataset([row])[0]["completion"][0]["tool_calls"]


def test_tools_reach_the_model_and_a_template_that_drops_them_is_refused(tmp_path):
    row = loaded(tmp_path, chat(None, None, None))
    text = render(tokenizer_with(), row.messages, tools=row.tools)
    assert "get_weather" in text
    assert length(tokenizer_with(), row) > length(tokenizer_with(), Row(messages=row.messages))
    blind = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    for template in (blind, None):
        with pytest.raises(DataError, match="tool"):
            encode(tokenizer_with(template), row, max_length=400)


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    with pytest.raises(DataError, match="weight other than 0"):
        encode(tokenizer_with(), loaded(tmp_path, chat(0, 0, 0)), max_length=400)
    with pytest.raises(DataError, match="no token to train on is left"):
        encode(tokenizer_with(), loaded(tmp_path, chat(0, 0, 1)), max_length=20)
    with pytest.raises(DataError, match="weighs its turns"):
        to_dataset([loaded(tmp_path, chat(0, 1, 1))])
    with pytest.raises(DataError, match="0 or 1"):
        loaded(tmp_path, chat(2, 1, 1))
    with pytest.raises(DataError, match="`tool_calls` of turn 1"):
        loaded(tmp_path, {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]})


def test_a_weighted_row_of_a_plain_layout(tmp_path):
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you")]
    weights = {"user": {}, "assistant": {"weight": 1}}
    row = Row(messages=tuple(Message(role=role, content=text, **weights[role]) for role, text in turns))
    tokenizer = tokenizer_with(None)
    assert learnt(tokenizer, encode(tokenizer, row, max_length=200)) == [" Hello<|im_end|>", " See you<|im_end|>"]
