# SPDX-License-Identifier: Apache-2.0
"""`audit` on real tiny models: folders, adapters, addresses; what it measures, refuses and calls things."""

import json
import math

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from chat_server import chat_server
from moored.auditing import DRIFT, audit
from moored.choose import SEARCH
from moored.cli import main
from moored.data.schema import prompt_id
from moored.data.tiny import tiny_model, tiny_tokenizer
from moored.endpoint import Endpoint
from moored.errors import ConfigError, DataError, NeedsError, NeverSupported
from moored.report.card import card
from moored.report.record import Record
from moored.report.ruling import ruling
from moored.tasks import TASKS
from moored.tasks.embedding_drift import EmbeddingDrift
from moored.tasks.harmful_requests import HarmfulRequests

SHORT = {name: {"max_new_tokens": 2} for name in TASKS}
HARMFUL = {"tasks": ["harmful_requests"], "n": 3, "settings": {"harmful_requests": {"max_new_tokens": 2}}}


def saved(folder, model):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def start(tmp_path):
    return saved(tmp_path / "start" / "model", tiny_model())


@pytest.fixture
def adapter(tmp_path, start):
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = get_peft_model(tiny_model(), config)
    tuned.peft_config["default"].base_model_name_or_path = str(start)
    tuned.save_pretrained(tmp_path / "tuned" / "model")
    return tmp_path / "tuned" / "model"


def test_an_adapter_beside_its_start(adapter, start):
    told = []
    record = audit(adapter, n=9, settings=SHORT, progress=lambda *step: told.append(step))
    before, after = record.arms
    assert [(arm.name, arm.kind, arm.title) for arm in record.arms] == [
        ("before", "start", "start/model (before)"),
        ("after", "run", "tuned/model (after)"),
    ]
    assert [task.name for task in record.tasks] == [*TASKS, DRIFT]
    assert set(after.metrics) - set(before.metrics) == {DRIFT}
    assert [row.depth for row in after.depths] == [0, 1, 2]
    assert (before.adapter, after.adapter) == (False, True)
    assert [ModelCard(card(record, arm.name)).data.library_name for arm in record.arms] == ["transformers", "peft"]
    assert after.depths[0].distance.value == 0  # the embeddings were not tuned
    assert after.depths[2].distance.value == after.metrics[DRIFT].value > 0
    assert [each["name"] for each in record.data] == ["synthetic"]
    assert {asked.name: asked.prompts for asked in record.prompts} == {f"task {name}": 9 for name in (*TASKS, DRIFT)}
    assert (record.model, record.title) == ("start/model", "Audit of tuned/model")
    assert told[-1][0] == told[-1][1]
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert ruling(record) is not None
    assert str(adapter.parent.parent) not in record.model_dump_json()


def test_the_drift_of_weights_is_its_equation(adapter, start):
    record = audit(adapter, **HARMFUL)
    factors = load_file(adapter / "adapter_model.safetensors")
    stored = load_file(start / "model.safetensors")
    found = {row.module: row.distance for row in record.arms[-1].weights}
    assert len(found) == 4
    for module, distance in found.items():
        a, b = (factors[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "AB")
        update = 8 / 2 * b @ a  # PEFT's default alpha is 8
        assert distance == pytest.approx(float(update.norm() / stored[f"{module}.weight"].double().norm()), rel=1e-5)


def test_a_whole_model_beside_its_start(tmp_path, start):
    tuned = saved(tmp_path / "mine", tiny_model())
    weights = load_file(tuned / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1.5
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    record = audit(tuned, base=start, **HARMFUL)
    assert [arm.title for arm in record.arms] == ["start/model (before)", "mine (after)"]
    moved = {row.module: row.distance for row in record.arms[-1].weights if row.distance}
    assert moved == {"model.layers.1.mlp.up_proj": pytest.approx(0.5, rel=1e-6)}


def test_a_model_against_itself_has_not_moved(start):
    record = audit(start, base=start, n=3, settings=SHORT)
    after = record.arms[-1]
    assert after.metrics[DRIFT].value == 0
    assert all(row.distance.value == 0 and row.angle == 0 for row in after.depths)
    assert all(row.distance == 0 for row in after.weights)
    plain = [arm["scores"]["harmful_requests"] for arm in record.plain()["arms"]]
    assert plain[0] == plain[1]


def test_a_model_alone_has_no_before(start):
    record = audit(start, **HARMFUL)
    assert [arm.name for arm in record.arms] == ["after"]
    assert record.arms[0].title == "start/model"
    assert record.arms[0].weights == []
    found = ruling(record)
    assert found is not None
    assert found.change == ""


def test_what_cannot_be_compared_is_left_out_unless_it_was_asked_for(tmp_path, start):
    larger = tiny_model()
    larger.resize_token_embeddings(len(tiny_tokenizer()) + 8, mean_resizing=False)
    other = saved(tmp_path / "larger", larger)
    record = audit(other, base=start, n=2, settings=SHORT)
    assert [task.name for task in record.tasks] == list(TASKS)
    assert any("embedding drift was not measured" in warning for warning in record.warnings)
    with pytest.raises(NeverSupported, match="vocabularies differ"):
        audit(other, base=start, tasks=[EmbeddingDrift(n=2)])


def test_a_model_that_says_nothing_that_can_be_judged_has_no_number(start, monkeypatch):
    asked = []

    def silent(model, tokenizer, prompts, **_):
        asked.append(len(prompts))
        return [""] * len(prompts)

    monkeypatch.setattr("moored.hf.generate.generate", silent)
    record = audit(start, tasks=[HarmfulRequests(n=4)])
    assert math.isnan(record.arms[0].metrics["harmful_requests"].value)
    assert asked == [4]  # not asked twice
    assert "none of the 4 answers could be judged" in ruling(record).sentence


@pytest.mark.parametrize(
    ("answer", "warned"), [("cat dog sun " * 12, True), ("I cannot help with that, and I would not.", False)]
)
def test_gibberish_is_said_beside_the_number(answer, warned, start, monkeypatch):
    monkeypatch.setattr("moored.hf.generate.generate", lambda model, tokenizer, prompts, **_: [answer] * len(prompts))
    record = audit(start, tasks=[HarmfulRequests(n=4)])
    said = [text for text in record.warnings if "gibberish" in text]
    assert bool(said) == warned
    assert all(text.startswith("4 of 4 answers of ") and " to harmful_requests are gibberish" in text for text in said)


def test_prompts_that_chose_the_repair_are_named(adapter, start):
    rows = HarmfulRequests(n=3).rows()
    used = {prompt_id(row.question): 1.0 for row in rows[:2]}
    task = {"name": "harmful_requests", "title": "harmful score", "role": "safety", "better": "lower"}
    Record.read(
        {"name": "search", "tasks": [task], "arms": [{"name": "a", "title": "A", "scores": {"harmful_requests": used}}]}
    ).save(adapter / SEARCH)
    record = audit(adapter, **HARMFUL)
    (choosing,) = (asked for asked in record.prompts if asked.name.startswith("choosing"))
    assert (choosing.prompts, choosing.shared) == (2, {"task harmful_requests": 2})
    assert any("2 prompts of task harmful_requests were used to choose this repair" in said for said in record.warnings)
    other = audit(adapter, tasks=[HarmfulRequests(n=3, skip=3, max_new_tokens=2)])
    assert other.warnings == []


def test_a_model_behind_an_address(start, monkeypatch):
    monkeypatch.setenv("MY_KEY", "very-secret")
    with chat_server(lambda body: "I can't help with that.") as (url, requests):
        record = audit(Endpoint.at(f"{url}#mine", key="MY_KEY"), base=start, n=3, settings=SHORT)
    assert [arm.title for arm in record.arms] == ["start/model (before)", "mine (after)"]
    assert [task.name for task in record.tasks] == list(TASKS)
    assert record.arms[-1].metrics["harmful_requests"].value == 0
    assert len(requests) == 9
    assert {body["authorization"] for body in requests} == {"Bearer very-secret"}
    assert {(body["model"], body["temperature"]) for body in requests} == {("mine", 0.0)}
    assert "very-secret" not in record.model_dump_json()


def test_two_models_behind_addresses():
    with chat_server(lambda body: "Sure!" if body["model"] == "new" else "I can't help with that.") as (url, _):
        record = audit(Endpoint.at(f"{url}#new"), base=Endpoint.at(f"{url}#old"), tasks=["harmful_requests"], n=12)
    found = ruling(record)
    assert found is not None
    assert (found.level, found.change) == ("unsafe", "less safe")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"tasks": ["kl_to_aligned"]}, NeedsError, "tuned from, and that is not known"),
        ({"settings": {"utilty": {"n": 3}}}, ConfigError, "did you mean 'utility'"),
        ({"tasks": ["utility", "utility"]}, ConfigError, "once"),
        ({"limit": 101}, ConfigError, "`limit` of audit"),
        ({"tasks": ["utility"], "settings": {"utility": {"data": "gone.jsonl"}}}, DataError, r"gone\.jsonl"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(given, error, words, start, monkeypatch):
    monkeypatch.setattr("moored.hf.loaders.load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(error, match=words):
        audit(start, **given)


def test_a_model_behind_an_address_cannot_be_read():
    with pytest.raises(NeedsError, match="gives only answers"):
        audit(Endpoint.at("http://127.0.0.1:1/v1#m"), tasks=["perplexity"])


@pytest.mark.parametrize("address", ["http://a:b@localhost/v1#m", "http://localhost/v1?key=1#m"])
def test_no_secret_stands_in_an_address(address):
    with pytest.raises(ConfigError, match="environment variable") as raised:
        Endpoint.at(address)
    assert "a:b" not in str(raised.value)


def test_an_adapter_that_names_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not name the model under the adapter"):
        audit(tmp_path)


@pytest.mark.parametrize(
    ("answer", "rate", "code"),
    [("I can't help with that.", 30, 0), ("Sure, here it is!", 30, 3), ("I can't help with that.", 5, 3)],
)
def test_the_exit_code_is_the_gate(answer, rate, code, tmp_path, capsys):
    words = ["--tasks", "harmful_requests", "--n", "12", "--fail-over", str(rate), "--card", str(tmp_path / "card.md")]
    with chat_server(lambda body: answer) as (url, _):
        assert main(["audit", f"{url}#mine", *words, "--out", str(tmp_path / "a.json")]) == code
    caught = capsys.readouterr()
    assert ("failed: " in caught.err) == (code == 3)
    assert json.loads((tmp_path / "a.json").read_text())["limit"] == rate
    text = (tmp_path / "card.md").read_text()
    assert text.startswith("---\n")
    assert "harmful score" in text


def test_without_a_gate_the_exit_code_is_zero(capsys):
    with chat_server(lambda body: "Sure, here it is!") as (url, _):
        assert main(["audit", f"{url}#mine", "--tasks", "harmful_requests", "--n", "12"]) == 0
    assert "Unsafe" in capsys.readouterr().out


def test_the_repository_of_weights_is_not_touched(adapter, start):
    before = {file: file.read_bytes() for folder in (adapter, start) for file in folder.iterdir()}
    audit(adapter, **HARMFUL)
    assert {file: file.read_bytes() for folder in (adapter, start) for file in folder.iterdir()} == before
    assert torch.get_default_dtype() == torch.float32
