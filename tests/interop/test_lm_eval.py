# SPDX-License-Identifier: Apache-2.0
"""lm-eval: what its results become, by hand; the command line; and a run of it on an adapter, offline."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest

from moored.errors import ConfigError, DataError
from moored.interop import lm_eval
from moored.interop.records import read
from moored.report.compare import compare

needs_lm_eval = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="needs lm-eval: pip install -c constraints.txt -e '.[lm-eval]'"
)

DATE = "2026-11-22T11-29-58.775588"


def results(accuracy=0.25, *, n=8, model="/home/me/runs/tuned", shots=5, **more):
    """Results as lm-eval 0.4.13 writes them, without what is not read."""
    error = math.sqrt(accuracy * (1 - accuracy) / (n - 1))
    return {
        "results": {
            "riddles": {
                "alias": "riddles",
                "acc,none": accuracy,
                "acc_stderr,none": error,
                "exact_match,strict": 0.5,
                "exact_match_stderr,strict": "N/A",
                "perplexity,none": 12.5,
                "perplexity_stderr,none": 1.0,
            }
        },
        "group_subtasks": {},
        "configs": {
            "riddles": {
                "dataset_path": "owner/riddles",
                "dataset_name": "hard",
                "metric_list": [
                    {"metric": "acc", "aggregation": "mean"},
                    {"metric": "exact_match", "aggregation": "mean"},
                    {"metric": "perplexity", "aggregation": "perplexity"},
                ],
            }
        },
        "versions": {"riddles": 2.0},
        "n-shot": {"riddles": shots},
        "higher_is_better": {"riddles": {"acc": True, "exact_match": True, "perplexity": False}},
        "n-samples": {"riddles": {"original": 100, "effective": n}},
        "config": {"model": "hf", "model_args": {"pretrained": model}, "limit": None},
        "date": 1795346956.5,
        "lm_eval_version": "0.4.13",
        "transformers_version": "5.23.0",
        **more,
    }


def written(folder, found, rights=()):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"results_{DATE}.json"
    path.write_text(json.dumps(found))
    if rights:
        lines = [
            {"doc_id": i, "prompt_hash": f"{i:064x}", "filter": "none", "acc": right, "perplexity": [1, 2]}
            for i, right in enumerate(rights)
        ]
        (folder / f"samples_riddles_{DATE}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_columns_numbers_and_intervals(tmp_path):
    record = read(written(tmp_path, results()))
    assert [(task.name, task.better, task.judge) for task in record.tasks] == [
        ("riddles/acc", "higher", "lm-eval, acc"),
        ("riddles/exact_match/strict", "higher", "lm-eval, exact_match"),
        ("riddles/perplexity", "lower", "lm-eval, perplexity"),
    ]
    assert {(task.version, task.data, task.role) for task in record.tasks} == {
        ("2.0, 5-shot", "owner/riddles:hard", "utility")
    }
    (arm,) = record.arms
    accuracy, exact, perplexity = (arm.metrics[task.name] for task in record.tasks)
    # sqrt(0.25 * 0.75 / 7) = 0.16366; 25 - 1.96 * 16.366 is below 0.
    assert (accuracy.value, accuracy.low, accuracy.high) == pytest.approx((25, 0, 57.08), abs=0.01)
    assert (accuracy.n, accuracy.unit) == (8, "%")
    # No standard error: Wilson's interval of 4 of 8.
    assert (exact.value, exact.low, exact.high) == pytest.approx((50, 21.52, 78.48), abs=0.01)
    assert (perplexity.value, perplexity.low, perplexity.high) == pytest.approx((12.5, 10.54, 14.46), abs=0.01)
    assert perplexity.unit == ""
    assert (arm.name, record.model, record.created) == ("tuned", "tuned", "2026-11-22T11:29:16+00:00")
    assert record.versions == {"lm-eval": "0.4.13", "transformers": "5.23.0"}
    assert "/home" not in record.model_dump_json()


def test_all_right_is_not_certain(tmp_path):
    share = read(written(tmp_path, results(1.0))).arms[0].metrics["riddles/acc"]
    assert (share.value, share.low, share.high) == pytest.approx((100, 67.56, 100), abs=0.01)


def test_answers_beside_the_results_are_compared_one_by_one(tmp_path):
    one = read(written(tmp_path / "a", results(0.25), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    two = read(written(tmp_path / "b", results(0.75, model="b"), [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))
    assert sorted(one.arms[0].scores) == ["riddles/acc"]  # a perplexity is no mean of answers
    found = {each.task.name: each for each in compare(one, one.arms[0], two, two.arms[0])}
    accuracy = found["riddles/acc"]
    assert (accuracy.better, accuracy.worse, accuracy.shared) == (5, 1, 8)
    assert accuracy.difference.value == pytest.approx(50)
    assert found["riddles/perplexity"].difference is None


def test_scores_that_do_not_give_the_number_are_not_kept(tmp_path):
    record = read(written(tmp_path, results(0.25), [1.0] * 8))
    assert record.arms[0].scores == {}


def test_another_number_of_shots_is_another_task(tmp_path):
    one, two = (read(written(tmp_path / str(shots), results(shots=shots))) for shots in (0, 5))
    with pytest.raises(DataError, match="versions '2.0, 0-shot' and '2.0, 5-shot'"):
        compare(one, one.arms[0], two, two.arms[0])


def test_a_chat_template_makes_another_task(tmp_path):
    record = read(written(tmp_path, results(chat_template="{{ messages }}")))
    assert record.tasks[0].version == "2.0, 5-shot, chat template"


def test_groups_count_the_rows_of_their_tasks(tmp_path):
    found = results()
    found["results"]["all"] = {"acc,none": 0.5, "acc_stderr,none": 0.1}
    found["group_subtasks"] = {"all": ["riddles", "others"], "others": ["more"]}
    found["n-samples"]["more"] = {"effective": 4}
    share = read(written(tmp_path, found)).arms[0].metrics["all/acc"]
    assert (share.n, share.unit) == (12, "%")


def test_a_limit_and_local_files_and_older_arguments(tmp_path):
    found = results(config={"model_args": "pretrained=./base,peft=/home/me/adapter,dtype=float32", "limit": 10.0})
    found["configs"]["riddles"]["dataset_kwargs"] = {"data_files": {"test": ["/home/me/a.jsonl"], "train": "b.jsonl"}}
    record = read(written(tmp_path, found))
    assert record.model == "adapter"
    assert record.tasks[0].data == "a.jsonl, b.jsonl"
    assert record.warnings == ["lm-eval asked no more than the first 10 rows (or that share) of each task"]


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="hold no numbers"):
        read(written(tmp_path / "a", results(results={"riddles": {"alias": "riddles"}})))
    path = written(tmp_path / "b", results(), [1.0])
    (tmp_path / "b" / f"samples_riddles_{DATE}.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"samples_riddles_.* cannot be read"):
        read(path)


def test_the_command_line(tmp_path):
    words = lm_eval.command(
        "base",
        ["a", "b"],
        adapter=Path("adapter"),
        out=Path("out"),
        include=Path("tasks"),
        limit=3,
        batch=2,
        chat=True,
        more=["--seed", "1"],
    )
    assert " ".join(words[1:]) == (
        "-m lm_eval run --model hf --model_args pretrained=base,peft=adapter --tasks a,b --batch_size 2 "
        "--output_path out --log_samples --include_path tasks --limit 3 --apply_chat_template --seed 1"
    )
    plain = lm_eval.command(
        "base", ["a"], adapter=None, out=Path("o"), include=None, limit=0, batch=1, chat=False, more=()
    )
    assert not {"--limit", "--include_path", "--apply_chat_template"} & set(plain)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [({"tasks": []}, "`tasks`"), ({"limit": -1}, "`limit`"), ({"batch": 0}, "`batch`"), ({"model": "a,b"}, "commas")],
)
def test_bad_parameters(given, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(lm_eval, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=sentence):
        lm_eval.run(**{"model": "m", "tasks": ["t"], "out": tmp_path, **given})


def test_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(lm_eval, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'moored\[lm-eval\]'"):
        lm_eval.run("m", ["t"], out=tmp_path)


COLOURS = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


@pytest.mark.slow
@needs_lm_eval
def test_a_run_on_an_adapter(tmp_path, capsys, monkeypatch):
    """The accuracy and every answer's score are what the adapted model's own probabilities say."""
    import torch
    from peft import LoraConfig, get_peft_model

    from moored.cli import main
    from moored.data.tiny import tiny_model, tiny_tokenizer
    from moored.report.record import Record

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    questions = [f"Is number {i * 37 % 100} red or blue?" for i in range(12)]
    tasks, rows = tmp_path / "tasks", tmp_path / "colours.jsonl"
    tasks.mkdir()
    (tasks / "colours.yaml").write_text(COLOURS.format(file=rows))
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    model.name_or_path = str(tmp_path / "base")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    tuned.save_pretrained(tmp_path / "tuned")

    def likelihood(question, choice):
        context = tokenizer(question)["input_ids"]
        whole = tokenizer(f"{question} {choice}")["input_ids"]
        logs = tuned(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(logs[i - 1, whole[i]].item() for i in range(len(context), len(whole)))

    with torch.inference_mode():
        redder = [likelihood(question, "red") > likelihood(question, "blue") for question in questions]
    # Half of the labels are what the model says, so that neither all nor none can be right.
    labels = [int(not red) if i % 2 else int(red) for i, red in enumerate(redder)]
    lines = [
        {"question": question, "choices": ["red", "blue"], "label": label}
        for question, label in zip(questions, labels, strict=True)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))

    words = ["lm-eval", str(tmp_path / "tuned"), "--tasks", "colours", "--include", str(tasks), "--batch", "4"]
    assert main([*words, "--keep", str(tmp_path / "keep"), "--out", str(tmp_path / "record.json")]) == 0
    assert "50.0 [20, 80]" in capsys.readouterr().out
    record = Record.load(tmp_path / "record.json")
    assert (record.model, record.tasks[0].name, record.tasks[0].data) == ("tuned", "colours/acc", "colours.jsonl")
    share = record.arms[0].metrics["colours/acc"]
    assert (share.value, share.n) == (50, 12)
    # sqrt(0.25 / 11) = 0.1508 on either side, 1.96 times
    assert (share.low, share.high) == pytest.approx((50 - 29.55, 50 + 29.55), abs=0.01)
    assert list(record.arms[0].scores["colours/acc"].values()) == [float(i % 2) for i in range(12)]
    (kept,) = (tmp_path / "keep").rglob("results_*.json")
    assert read(kept).arms == record.arms
