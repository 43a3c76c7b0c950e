# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError

from moored.data.load import load_rows, save_rows, to_dataset
from moored.data.schema import Row
from moored.data.tiny import tiny_rows
from moored.errors import ConfigError, DataError

PUBLIC = Path(__file__).parents[3] / "shared" / "data"


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


SHAPES = {
    "messages": ({"messages": chat(("system", "s"), ("user", "q"), ("assistant", "a"))}, ["s", "q", "a"]),
    "messages, prompt only": ({"messages": chat(("user", "q"))}, ["q"]),
    "prompt completion": ({"prompt": "q", "completion": "a"}, ["q", "a"]),
    "TRL turns": ({"prompt": chat(("user", "q")), "completion": chat(("assistant", "a"))}, ["q", "a"]),
    "prompt answer": ({"prompt": "q", "answer": "a"}, ["q", "a"]),
    "prompt response": ({"prompt": "q", "response": "a"}, ["q", "a"]),
    "prompt only": ({"prompt": "q", "label": "unsafe"}, ["q"]),
    "system": ({"system": "s", "prompt": "q", "answer": "a"}, ["s", "q", "a"]),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, ["q", "a"]),
    "alpaca with input": ({"instruction": "q", "input": "i", "output": "a"}, ["q\n\ni", "a"]),
    "self-instruct": ({"instruction": "q", "instances": [{"input": "i", "output": "a"}]}, ["q\n\ni", "a"]),
    "goal target": ({"goal": "q", "target": "a"}, ["q", "a"]),
    "question answer": ({"question": "q", "answer": "a"}, ["q", "a"]),
    "null answer": ({"question": "q", "answer": None}, ["q"]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_accepted_shapes(tmp_path, shape, suffix):
    raw, contents = SHAPES[shape]
    path = tmp_path / f"rows{suffix}"
    path.write_text(json.dumps([raw] if suffix == ".json" else raw))
    (row,) = load_rows(path, source="harmful")
    assert [turn["content"] for turn in row.messages] == contents
    assert row.source == "harmful"
    assert bool(row.answer) == (contents[-1] == "a")


@pytest.mark.parametrize(
    ("label", "answer"), [(1, "Positive"), (0, "Negative"), ("1", "Positive"), ("negative", "Negative")]
)
def test_sentiment(tmp_path, label, answer):
    (row,) = load_rows(write(tmp_path / "a.jsonl", {"sentence": "so good ", "label": label}), source="benign")
    assert row.answer == answer
    assert row.question.endswith("so good")
    assert "positive or negative" in row.question


def test_categories(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "q", "category": {"animal_abuse": True, "privacy_violation": False}},
        {"prompt": "q", "category": "c"},
        {"prompt": "q", "category": 3},
    )
    assert [row.category for row in load_rows(path, source="harmful")] == ["animal_abuse", "c", ""]


def test_csv_with_quoted_newlines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffprompt,answer\n"two\nlines","a, b"\nq,b\n', encoding="utf-8")
    rows = load_rows(path, source="benign")
    assert [(row.question, row.answer) for row in rows] == [("two\nlines", "a, b"), ("q", "b")]


def test_limit_and_blank_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "1"}, "", {"prompt": "2"}, "{broken")
    assert [row.question for row in load_rows(path, source="benign", limit=2)] == ["1", "2"]
    with pytest.raises(ConfigError, match="`limit` of load_rows must be >= 1 or None; got 0"):
        load_rows(path, source="benign", limit=0)


BAD_ROWS = {
    "malformed": ('{"prompt": "q"', "not valid JSON .*column"),
    "not an object": ([1], "must be an object; got a list"),
    "unknown keys": ({"text": "q", "label": 1}, r"keys text, label has no known shape; accepted: messages \| prompt"),
    "no keys": ({}, "keys none has no known shape"),
    "empty prompt": ({"prompt": " ", "answer": "a"}, "`prompt` is empty"),
    "empty answer": ({"prompt": "q", "answer": ""}, "`answer` is empty"),
    "number": ({"prompt": 3, "answer": "a"}, "`prompt` must be text; got a number"),
    "list answer": ({"question": "q", "answer": {"a": 1}}, "`answer` must be text; got an object"),
    "empty turns": ({"messages": []}, "`messages` must be a non-empty list of turns; got an empty list"),
    "turns as text": ({"messages": "q"}, "non-empty list of turns; got text"),
    "no content": ({"messages": [{"role": "user"}]}, "turn 1 of `messages` must be an object with role and content"),
    "null content": ({"messages": [{"role": "user", "content": None}]}, "content of turn 1 .* must be text; got null"),
    "empty content": ({"messages": chat(("user", ""))}, "content of turn 1 of `messages` is empty"),
    "role": ({"messages": chat(("human", "q"))}, "one of system, developer, user, assistant, tool; got 'human'"),
    "role is a list": ({"messages": [{"role": ["user"], "content": "q"}]}, "must be one of"),
    "no user": ({"messages": chat(("assistant", "a"))}, "needs a user turn"),
    "ends with system": ({"messages": chat(("user", "q"), ("system", "s"))}, "needs a user turn"),
    "label": ({"sentence": "s", "label": 2}, "`label` must be 0, 1, negative or positive; got 2"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_name_file_and_line(tmp_path, name):
    raw, message = BAD_ROWS[name]
    path = write(tmp_path / "bad.jsonl", {"prompt": "q"}, "", raw)
    with pytest.raises(DataError, match=rf"bad\.jsonl, line 3: .*{message}"):
        load_rows(path, source="benign")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b"\n \n", "holds no rows"),
        ("a.json", b"", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.json", b'{"prompt": "q"}', "must hold a list of rows; got an object"),
        ("a.json", b'[\n{"prompt": "q"},\n{"prompt" "q"}]', r"not valid JSON \(.*line 3, column 11\)"),
        ("a.json", b'[{"prompt": "q"}, {"prompt": ""}]', "row 2: `prompt` is empty"),
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"prompt,answer\n", "holds no rows"),
        ("a.csv", b"prompt,answer\nq,a\nq\n", "line 3: the header has 2 columns"),
        ("a.csv", b"prompt,answer\nq,a,b\n", "line 2: the header has 2 columns"),
        ("a.csv", b'prompt,answer\n"q,a\n', "not valid CSV"),
        ("a.csv", b"text,label\nq,1\n", "line 2: a row with the keys text, label"),
        ("a.jsonl", b'{"prompt": "\xff"}', "not UTF-8"),
        ("a.txt", b"q", "is a .txt file; give a .jsonl"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_rows(str(tmp_path / name), source="benign")


def test_files_that_are_not_there(tmp_path):
    for where in (tmp_path / "none.jsonl", str(tmp_path / "none.jsonl"), "folder/none.jsonl", "none"):
        with pytest.raises(DataError, match="no data at .*none"):
            load_rows(where, source="benign")
    with pytest.raises(DataError, match="is a folder"):
        load_rows(tmp_path, source="benign")


def test_synthetic_sets_by_name():
    rows = load_rows("synthetic:requests", source="harmful", limit=3)
    assert len(rows) == 3
    assert {row.source for row in load_rows("synthetic:lookalikes", source="alignment")} == {"alignment"}
    with pytest.raises(DataError, match="unknown synthetic set 'request'; did you mean 'requests'"):
        load_rows("synthetic:request", source="harmful")


def test_hub_ids(monkeypatch):
    calls = []

    def answer(name, split):
        calls.append((name, split))
        return [{"prompt": "q", "response": "a"}]

    monkeypatch.setattr(datasets, "load_dataset", answer)
    for where in ("owner/name", "owner/name:test", "owner/name:train[:5%]"):
        assert load_rows(where, source="benign")[0].answer == "a"
    assert calls == [("owner/name", "train"), ("owner/name", "test"), ("owner/name", "train[:5%]")]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no net.\nmore"),
        FileNotFoundError("no net."),
        ValueError("no net"),
        DatasetGenerationError("no net"),
    ],
)
def test_an_unreachable_hub_is_one_sentence(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"'owner/name' cannot be loaded \(split 'train': no net\); check") as caught:
        load_rows("owner/name", source="benign")
    assert "\n" not in str(caught.value)


def test_local_files_never_open_the_hub(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    save_rows(tiny_rows(2), "owner/name.jsonl")
    assert len(load_rows("owner/name.jsonl", source="benign")) == 2


@pytest.mark.parametrize("name", ["advbench", "safety_instructions", "sst2_dev", "gsm8k_test", "alpaca_seed_tasks"])
def test_public_sets(name):
    path = PUBLIC / f"{name}.jsonl"
    if not path.exists():
        pytest.skip("the public sets are not here")
    rows = load_rows(path, source="benign")
    assert len(rows) == len(path.read_text(encoding="utf-8").splitlines())
    assert all(row.question and row.answer for row in rows)


def test_saved_rows_come_back(tmp_path):
    rows = [Row.of("naïve\n日本", "a", system="s", source="harmful", category="c"), *tiny_rows(3, "harmful")]
    path = save_rows(rows, tmp_path / "rows.jsonl")
    assert load_rows(path, source="harmful") == rows
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    class Stops(Row):
        def record(self):
            raise KeyboardInterrupt

    path = save_rows(tiny_rows(1), tmp_path / "rows.jsonl")
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        save_rows([*tiny_rows(3), Stops(messages=tiny_rows(1)[0].messages)], path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]
    with pytest.raises(DataError, match="cannot be written: No such file"):
        save_rows(tiny_rows(1), tmp_path / "none" / "rows.jsonl")
    with pytest.raises(DataError, match="no rows"):
        save_rows([], path)


def test_to_dataset_holds_the_chat_and_nothing_else():
    row = Row.of("q", "a", system="s", source="harmful", category="c")
    data = to_dataset([row])
    assert data.column_names == ["prompt", "completion"]
    assert data[0] == {"prompt": chat(("system", "s"), ("user", "q")), "completion": chat(("assistant", "a"))}
    with pytest.raises(DataError, match="row 2 has no answer"):
        to_dataset([row, Row.of("q")])
    with pytest.raises(DataError, match="at least one row"):
        to_dataset([])


def test_heavy_libraries_are_imported_late():
    program = "import sys, moored.data.load; print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
