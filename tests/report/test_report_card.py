# SPDX-License-Identifier: Apache-2.0
import pytest
import yaml
from huggingface_hub import ModelCard

from moored.errors import ConfigError
from moored.report.card import card
from moored.report.demo import demo_record


def test_the_head_is_what_a_hub_reads():
    record = demo_record()
    text = card(record, "combined")
    results = ModelCard(text).data.eval_results
    assert {result.metric_type: result.metric_value for result in results} == {
        task.name: round(record.arm("combined").metrics[task.name].value, 2) for task in record.tasks
    }
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == "SmolLM2-135M-Instruct"
    assert {"moored", "safety", "Lisa", "Vaccine", "safe_lora"} <= set(head["tags"])


def test_the_body_compares_with_references_and_the_undefended_run():
    text = card(demo_record(), "lisa")
    head = next(line for line in text.splitlines() if line.startswith("| Task"))
    assert head == "| Task | Instruct model as shipped | Aligned start | Undefended | Lisa |"
    assert "| 95.3 [87, 98] n=64 | 6.2 [2, 15] n=64 |" in text
    assert "- Lisa acted 120 times" in text
    assert "What this does not promise" in text
    assert "Made-up numbers" in text


def test_a_sweep_compares_under_the_same_conditions():
    text = card(demo_record(ratios=(0.05, 0.2)), "lisa@ratio=0.05")
    assert "Undefended (ratio 0.05)" in text
    assert "ratio 0.2)" not in text


def test_unmeasured_tasks_are_left_out_of_the_head_and_nothing_is_a_valid_card():
    data = demo_record().plain()
    for arm in data["arms"]:
        arm["metrics"]["utility"].update(value=None, low=None, high=None)
    results = ModelCard(card(data, "lisa")).data.eval_results
    assert {result.metric_type for result in results} == {"harmful_requests", "over_refusal"}
    for arm in data["arms"]:
        arm["metrics"] = {}
    assert ModelCard(card(data, "lisa")).data.eval_results is None


def test_markup_is_inert():
    data = demo_record().plain()
    data["arms"][2].update(title="<script>x</script> | a", chain=["<img src=x>", "[a](b)"])
    text = card(data, "undefended")
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body.replace("\\<", "")
    assert "[a](b)" not in body


def test_an_unknown_arm_is_named():
    with pytest.raises(ConfigError, match="unknown arm 'nobody'"):
        card(demo_record(), "nobody")
