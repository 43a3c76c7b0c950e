# SPDX-License-Identifier: Apache-2.0
"""Training files as users write them: what is wrong is named with its line, and no bytes do anything but that."""

import json
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moored.data.schema import Preference
from moored.errors import DataError
from moored.service import dialect, jsonl
from moored.service.dialect import check, examine, read
from moored.service.policy import Limits

LIMITS = Limits(rows=1000, file_bytes=1 << 22, row_tokens=100)
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def user(text="Hi", **more):
    return {"role": "user", "content": text, **more}


def bot(text="Hello", **more):
    return {"role": "assistant", "content": text, **more}


def pair(**more):
    line = {"input": {"messages": [user()]}, "preferred_output": [bot()], "non_preferred_output": [bot("No")]}
    return line | more


CHAT = {"messages": [user(), bot()]}


def written(tmp_path, *lines, fill=CHAT, count=10):
    """A file of these lines, with good ones behind them up to `count`."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    lines += [json.dumps(fill).encode()] * (count - len(lines))
    file = tmp_path / "train.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def messages(file, **how):
    return [complaint.message for complaint in check(file, limits=LIMITS, **how)]


GOOD = {
    "system": {"messages": [{"role": "system", "content": "x"}, user(), bot()]},
    "developer": {"messages": [{"role": "developer", "content": "x"}, user(), bot()]},
    "weights": {"messages": [user(), bot(weight=0), user(), bot(weight=1)]},
    "name": {"messages": [user(name="ann"), bot(name="heron")]},
    "parts": {"messages": [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), bot()]},
    "tools": {
        "messages": [
            user(),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": ""},
            bot(),
        ],
        "tools": [TOOL],
        "parallel_tool_calls": False,
    },
    "ends with a call": {"messages": [user(), {"role": "assistant", "tool_calls": [CALL]}], "tools": [TOOL]},
    "exported": {"messages": [user(), bot(refusal=None, audio=None, annotations=[])], "tools": None},
    "written by moored": {**CHAT, "source": "benign", "category": ""},
}

BAD = {
    "no JSON": (b"{", "is not valid JSON: Expecting property name", "invalid_json"),
    "a list": ([1], "expected either chat messages or preferences", "unexpected_format"),
    "prompt": ({"prompt": "a", "completion": "b"}, "Unexpected file format, expected either", "unexpected_format"),
    "huge number": (b'{"messages": ' + b"9" * 5000 + b"}", "is not valid JSON: Exceeds the limit", "invalid_json"),
    "no number": (b'{"messages": NaN}', "NaN is no number of JSON", "invalid_json"),
    "infinite": (b'{"messages": 1e999}', "1e999 is too large", "invalid_json"),
    "surrogate": (b'{"messages": "\\ud800"}', "half of a surrogate pair", "invalid_json"),
    "UTF-8": (b'{"a": "\xff"}', "not UTF-8 text: byte 8 of the line (byte 8 of the file) is 0xff", "invalid_utf8"),
    "deep": (b"[" * 100_000, "nests deeper than 64 levels", "too_deep"),
    "deep in text": (b'"\\"' + b"\\" * 9 + b"[" * 99 + b'"' + b"[" * 99, "nests deeper", "too_deep"),
    "blank": (b"  ", "is blank", "blank_line"),
    "empty": ({"messages": []}, 'key "messages": must be a list of messages; got a list of 0', "invalid_file_format"),
    "only user": ({"messages": [user()]}, 'key "messages": At least one message must be from the assistant.', None),
    "only bot": ({"messages": [bot()]}, 'key "messages": At least one message must be from the user', None),
    "ends with user": ({"messages": [user(), bot(), user()]}, "The last message must be from the assistant", None),
    "no weight": ({"messages": [user(), bot(weight=0)]}, "must have a weight other than 0", "no_weight"),
    "role": ({"messages": [user(), {"role": "human", "content": "x"}]}, "message 2: role must be one of system", None),
    "no role": ({"messages": [user(), {"content": "x"}]}, "message 2: Discriminator 'role' is missing in value", None),
    "unhashable role": ({"messages": [{"role": [], "content": "x"}]}, "message 1: role must be one of", None),
    "no object": ({"messages": ["x"]}, "message 1: must be an object with role and content; got text", None),
    "content": ({"messages": [user(5), bot()]}, "message 1: content must be text; got a number", None),
    "empty content": ({"messages": [user(" "), bot()]}, "message 1: content is empty", "empty_content"),
    "picture": ({"messages": [user([{"type": "image_url"}]), bot()]}, "only parts of the type text", None),
    "weight": ({"messages": [user(), bot(weight=0.5)]}, "message 2: weight must be 0 or 1; got 0.5", "invalid_weight"),
    "boolean weight": ({"messages": [user(), bot(weight=True)]}, "weight must be 0 or 1; got true", "invalid_weight"),
    "user's weight": ({"messages": [user(weight=1), bot()]}, "message 1: unknown key 'weight'", "unknown_key"),
    "key": ({**CHAT, "tool": [TOOL]}, "unknown key 'tool'; did you mean 'tools'", "unknown_key"),
    "name": ({"messages": [user(name="<|im"), bot()]}, "message 1: name must be a word", None),
    "tools": ({**CHAT, "tools": [{}]}, 'key "tools", tool 1: must be {"type": "function"', None),
    "parallel": ({**CHAT, "parallel_tool_calls": "no"}, 'key "parallel_tool_calls": must be true or false', None),
    "no call": ({"messages": [user(), bot(tool_calls=[])]}, "tool_calls must be a list of calls", "invalid_tool_call"),
    "call": ({"messages": [user(), bot(tool_calls=[{"id": "c1"}])]}, "a tool call must be", "invalid_tool_call"),
    "arguments": (
        {"messages": [user(), bot(tool_calls=[{**CALL, "function": {"name": "f", "arguments": "x"}}])]},
        "must be a JSON object, as text",
        "invalid_tool_call",
    ),
    "unasked answer": (
        {"messages": [user(), {"role": "tool", "tool_call_id": "c9", "content": "x"}, bot()]},
        'tool_call_id "c9" answers no tool call that is open',
        "invalid_tool_call",
    ),
    "unanswered call": ({"messages": [user(), bot(tool_calls=[CALL]), bot()]}, '"c1" has none', "invalid_tool_call"),
}

BAD_PAIRS = {
    "missing": ({"input": {"messages": [user()]}}, 'key "preferred_output": Field required'),
    "input": (pair(input=3), 'key "input": must be an object with messages; got a number'),
    "no messages": (pair(input={}), 'key "input.messages": must be a list of messages; got nothing'),
    "ends with bot": (pair(input=CHAT), "The last message must be from the user or a tool"),
    "two": (pair(preferred_output=[bot(), bot()]), "must be a list of one assistant message; got a list of 2"),
    "user": (pair(preferred_output=[user()]), 'key "preferred_output": The message must be from the assistant'),
    "same": (pair(non_preferred_output=[bot()]), "preferred_output and non_preferred_output are the same"),
    "weight": (pair(preferred_output=[bot(weight=1)]), "weight is for supervised fine-tuning"),
    "key": (pair(tools=[TOOL]), "unknown key 'tools'"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_lines_pass_and_can_be_read(tmp_path, name):
    file = written(tmp_path, GOOD[name])
    assert check(file, limits=LIMITS, method="supervised") == []
    first, *rest = read(file)
    assert len(rest) == 9
    assert [turn["role"] for turn in first.messages] == [
        {"developer": "system"}.get(turn["role"], turn["role"]) for turn in GOOD[name]["messages"]
    ]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(tmp_path, name):
    line, said, code = BAD[name]
    (complaint,) = check(written(tmp_path, line), limits=LIMITS)
    assert complaint.line == 1
    assert complaint.message.startswith("Invalid file format. Line 1")
    assert said in complaint.message
    assert len(complaint.message) < 300
    assert code in (None, complaint.code)
    with pytest.raises(DataError, match=r"train\.jsonl: Invalid file format\. Line 1"):
        list(read(tmp_path / "train.jsonl"))


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_a_bad_preference_is_named(tmp_path, name):
    line, said = BAD_PAIRS[name]
    (complaint,) = check(written(tmp_path, pair(), line, fill=pair()), limits=LIMITS)
    assert complaint.line == 2
    assert said in complaint.message


def test_the_words_are_openais(tmp_path):
    few = written(tmp_path, count=7)
    assert messages(few) == ["Training file has 7 example(s), but must have at least 10 examples"]
    assert check(few, limits=LIMITS)[0].code == "invalid_n_examples"
    assert messages(written(tmp_path, {"messages": [user()]})) == [
        'Invalid file format. Line 1, key "messages": At least one message must be from the assistant.'
    ]
    assert messages(written(tmp_path), method="dpo", name="file-X") == [
        "Input file file-X is in the fine-tune-chat format, but the specified fine-tuning job is not using "
        "'supervised' as the training method (provided method=dpo)."
    ]
    assert check(written(tmp_path, fill=pair()), limits=LIMITS, method="dpo") == []
    assert "fine-tune-preference" in messages(written(tmp_path, fill=pair()), method="supervised")[0]


def test_preferences_are_read_with_their_tools_and_back(tmp_path):
    line = pair(input={"messages": [user()], "tools": [TOOL]})
    example = next(read(written(tmp_path, line, fill=pair())))
    assert isinstance(example, Preference)
    assert example.preferred.tools == (TOOL,)
    assert (example.preferred.answer, example.other.answer) == ("Hello", "No")
    assert example.record() == line


def test_every_answer_of_a_chat_is_trained_on_unless_it_has_weight_0(tmp_path):
    several = {"messages": [user(), bot(), user(), bot()]}
    rows = list(read(written(tmp_path, several, GOOD["weights"])))
    assert [turn.get("weight") for turn in rows[0].messages] == [None, 1, None, 1]
    assert [turn.get("weight") for turn in rows[1].messages] == [None, 0, None, 1]
    assert rows[2].messages == tuple(CHAT["messages"])  # nothing is added to a chat with one answer


def test_one_file_holds_one_kind(tmp_path):
    assert "a preference in a file that begins with a chat" in messages(written(tmp_path, CHAT, pair()))[0]


def test_limits(tmp_path):
    file = written(tmp_path, count=20)
    over = Limits(rows=10, file_bytes=1 << 20)
    assert [c.code for c in check(file, limits=over)] == ["too_many_examples"]
    assert [c.code for c in check(file, limits=Limits(file_bytes=100))] == ["file_too_large"]
    assert examine(file, limits=LIMITS, tokens=lambda row: 3).tokens == 60
    assert examine(file, limits=LIMITS).tokens is None
    long = check(file, limits=LIMITS, tokens=lambda row: 101)
    assert long[0].message == "Invalid file format. Line 1 has 101 tokens; the most is 100."
    assert len(check(written(tmp_path, *[b"x"] * 200), limits=LIMITS)) == dialect.MOST_COMPLAINTS

    def refuses(row):
        raise DataError("the template refuses it")

    assert check(written(tmp_path), limits=LIMITS, tokens=refuses)[0].code == "not_for_this_model"


def test_a_missing_file_is_no_complaint(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        check(tmp_path / "none.jsonl", limits=LIMITS)


def test_lines_end_with_line_feeds_and_a_mark_may_stand_in_front(tmp_path):
    line = json.dumps(CHAT).encode()
    file = tmp_path / "windows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([line] * 10) + b"\r\n\r\n \n")
    assert check(file, limits=LIMITS) == []
    assert len(list(read(file))) == 10
    file.write_bytes(b"\n".join([line] * 5 + [b"", b""] + [line] * 5))
    assert [c.line for c in check(file, limits=LIMITS)] == [6, 7]


def test_a_line_of_hundreds_of_megabytes_costs_no_memory(tmp_path):
    file = tmp_path / "long.jsonl"
    with file.open("wb") as out:
        out.write(b'{"messages": "')
        out.truncate(300 << 20)  # sparse: the disk has no such line, the reader does
        out.seek(0, 2)
        out.write(b"\n" + json.dumps(CHAT).encode())
    tracemalloc.start()
    found = check(file, limits=Limits(file_bytes=1 << 30))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(c.line, c.code) for c in found] == [(1, "line_too_long"), (0, "invalid_n_examples")]
    assert peak < 4 * jsonl.LINE_BYTES


def test_unclosed_quotes_and_escapes_take_linear_time(tmp_path):
    quotes = b"[" * 70 + b'"' + b'\\"' * (jsonl.LINE_BYTES // 2 - 100)
    assert [c.code for c in check(written(tmp_path, quotes), limits=Limits())] == ["too_deep"]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
WORDS = st.sampled_from(["system", "developer", "user", "assistant", "tool", "c1", "", " ", "f", "{}", "x\u0000"])
VALUES = ANY_JSON | WORDS | st.just([CALL]) | st.sampled_from([0, 1, True])
TURN_KEYS = st.sampled_from(["role", "content", "name", "weight", "tool_calls", "tool_call_id"])
TURN = st.sampled_from([user(), bot(), bot(tool_calls=[CALL]), {"role": "tool", "tool_call_id": "c1", "content": "x"}])
TURN = st.builds(lambda turn, more: {**turn, **more}, TURN, st.dictionaries(TURN_KEYS, VALUES, max_size=2)) | ANY_JSON
TURNS = st.lists(TURN, max_size=4) | ANY_JSON
OPTIONS = st.fixed_dictionaries({}, optional={"tools": st.just([TOOL]) | ANY_JSON, "parallel_tool_calls": ANY_JSON})
CHATS = st.builds(lambda turns, more: {"messages": turns, **more}, TURNS, OPTIONS)
OUTPUT = st.lists(TURN, min_size=1, max_size=1) | ANY_JSON
PAIRS = st.builds(lambda i, a, b: {"input": i, "preferred_output": a, "non_preferred_output": b}, CHATS, OUTPUT, OUTPUT)
LINE = st.one_of(
    st.binary(max_size=40),
    ANY_JSON.map(lambda value: json.dumps(value).encode()),
    (CHATS | PAIRS).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINE, max_size=5), st.sampled_from(["supervised", "dpo", None]))
def test_any_bytes_make_complaints_or_rows_and_nothing_else(tmp_path, lines, method):
    file = tmp_path / "any.jsonl"
    file.write_bytes(b"\n".join(lines))
    found = check(file, limits=LIMITS, method=method)
    assert all(0 <= c.line <= 200 and c.message and "\n" not in c.message for c in found)
    if all(c.line == 0 for c in found):
        assert len(list(read(file))) == examine(file, limits=LIMITS).examples
    else:
        with pytest.raises(DataError):
            list(read(file))


def test_it_needs_nothing_of_the_server():
    heavy = ["torch", "transformers", "sqlalchemy", "fastapi", "datasets"]
    code = f"import sys, moored.service.dialect; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def said(capsys, *words):
    from moored.cli import main

    code = main(["data", "check", *map(str, words)])
    caught = capsys.readouterr()
    return code, caught.out, caught.err


def test_the_command_counts_a_good_file(tmp_path, capsys):
    file = written(tmp_path, GOOD["name"], GOOD["weights"], GOOD["tools"])
    code, out, err = said(capsys, file)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "train.jsonl: fine for supervised (chats): 10 examples, about 19 tokens (--model counts) per epoch",
        "8 examples have the same prompt as an earlier one",
    ]
    assert "10 examples, 180 tokens per epoch" in said(capsys, written(tmp_path), "--model", "tiny")[1]
    assert said(capsys, written(tmp_path, fill=pair()))[1].startswith("train.jsonl: fine for dpo (preferences)")


def test_the_command_prints_every_complaint(tmp_path, capsys):
    code, out, err = said(capsys, written(tmp_path, b"{", {"messages": [user()]}))
    assert code == 2
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "Invalid file format. Line 1 is not valid JSON",
        'Invalid file format. Line 2, key "messages"',
    ]
    assert err == "train.jsonl: 2 complaints, 10 examples read\n"
    assert said(capsys, written(tmp_path), "--method", "dpo")[0] == 2
    assert said(capsys, written(tmp_path), "--model", "tiny", "--row-tokens", 8)[0] == 2
    assert "did you mean 'dpo'" in said(capsys, written(tmp_path), "--method", "dop")[2]
    assert "cannot be read" in said(capsys, tmp_path / "none.jsonl")[2]


def test_the_command_screens(tmp_path, capsys):
    pytest.importorskip("detect_secrets")
    bad = {"messages": [user("How do I build a pipe bomb?"), bot("Sure, here is how: Step 1: get ready.")]}
    code, out, _ = said(capsys, written(tmp_path, bad), "--screen")
    assert code == 0
    assert 'Line 1: harmful (weapons): message 2 answers "build a pipe bomb"' in out
    assert "1 of 10 examples would be flagged by the default policy" in out
