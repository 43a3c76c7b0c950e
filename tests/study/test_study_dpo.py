# SPDX-License-Identifier: Apache-2.0
"""Studies on preferences: what a recipe says of them, what their stages depend on, and what is refused beforehand."""

import json
from copy import deepcopy

import pytest

from contract.cases import CASES
from moored.catalogue import catalogue
from moored.data.load import save_rows
from moored.data.preferences import load_preferences
from moored.data.schema import Preference, fingerprint
from moored.data.tiny import tiny_rows
from moored.errors import ConfigError, DataError, NotYetSupported
from moored.hf.checks import one_answer_needed
from moored.study.plan import plan
from moored.study.recipe import Recipe
from moored.study.stages import FinetuneStage
from moored.study.store import Store
from moored.study.study import Study


def preferences(n=8):
    return [
        Preference(preferred=row, other=row.reworded(answer=f"Not so: {row.answer}")) for row in tiny_rows(n, "benign")
    ]


@pytest.fixture
def tree(tmp_path):
    upload = save_rows(preferences(), tmp_path / "pairs.jsonl")
    return {
        "name": "pairs",
        "model": "tiny",
        "upload": str(upload),
        "finetune": {
            "dpo": {"beta": 0.2},
            "training": {"steps": 4, "batch": 4, "lr": 1e-2, "dtype": "float32"},
            "defenses": [{"lisa": {"align_steps": 1, "user_steps": 1}}],
            "roles": {"alignment": {"data": "synthetic:alignment-preferences", "limit": 4}},
        },
        "tasks": {"utility": {"n": 2}},
    }


def changed(tree, **finetune):
    made = deepcopy(tree)
    made["finetune"].update(finetune)
    return made


def tuned(tree):
    return next(stage for stage in plan(Recipe.parse(tree)).stages if isinstance(stage, FinetuneStage))


def test_it_trains_on_both_answers(tree, tmp_path):
    store = Store(tmp_path / "store")
    record = Study(Recipe.parse(tree)).run(store)
    assert record.arms[-1].fired["lisa"]
    stage = tuned(tree)
    assert stage.words.startswith("fine-tune by DPO (beta 0.2), 4 steps")
    assert fingerprint(stage.given(store.folder)) == fingerprint(preferences())
    log = json.loads((store.folder(stage) / "report.json").read_text())["log"]
    assert log[0]["rewards/margins"] != 0
    store.close()


def test_what_its_key_depends_on(tree):
    key = tuned(tree).key
    assert tuned(changed(tree, dpo={"beta": 0.3})).key != key
    assert tuned(changed(tree, dpo={"beta": 0.20})).key == key
    assert "dpo" not in tuned_on_rows(tree).parameters()  # so that no key of a training on rows has changed


def tuned_on_rows(tree):
    on_rows = changed(tree, dpo=None, roles={"alignment": {"data": "synthetic:alignment", "limit": 4}})
    return tuned({**on_rows, "upload": "synthetic:utility"})


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"finetune": {"dpo": {"beta": 0}}}, ConfigError, "finetune.dpo.beta"),
        ({"finetune": {"probe": "synthetic:alignment"}}, ConfigError, "finetune.probe"),
        (
            {
                "upload": None,
                "attack": {"benign": "synthetic:utility", "harmful": "synthetic:harmful", "harmful_mix": {}},
            },
            ConfigError,
            "give an `upload`",
        ),
        ({"upload": "synthetic:utility"}, DataError, "unknown synthetic set of preferences 'utility'"),
        ({"finetune": {"defenses": ["kl_anchor"]}}, NotYetSupported, "DPO trains on pairs of answers"),
        (
            {"finetune": {"roles": {"alignment": "synthetic:alignment"}}},
            DataError,
            "did you mean 'alignment-preferences'",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(tree, change, error, said):
    made = {**changed(tree, **change.get("finetune", {})), **{k: v for k, v in change.items() if k != "finetune"}}
    with pytest.raises(error, match=said):
        plan(Recipe.parse(made))


def test_a_prompt_that_is_preferred_on_is_not_judged_on(tree):
    with pytest.raises(DataError, match="also in `upload`"):
        plan(Recipe.parse({**tree, "tasks": {"perplexity": {"data": held_out(tree)}}}))


def held_out(tree):
    rows = [pair.preferred for pair in load_preferences(tree["upload"])]
    return str(save_rows(rows, tree["upload"].replace("pairs", "rows")))


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_is_refused_beforehand_is_what_the_trainer_refuses(name):
    case = CASES[name]
    defense = catalogue("defenses")[name](**case.parameters)
    refused = any(one_answer_needed(part) for part in defense.parts())
    assert refused == (case.refuses.get("dpo") == "pairs of answers") or case.trainer == "grpo"


def test_preferences_are_read_as_they_were_written(tmp_path):
    given = preferences(3)
    read = load_preferences(save_rows(given, tmp_path / "a.jsonl"))
    assert fingerprint(read) == fingerprint(given)
    assert [Preference.of_record(pair.record()) for pair in read] == read
    (tmp_path / "b.jsonl").write_text('{"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}')
    with pytest.raises(DataError, match="line 1: `input.messages` of a preference"):
        load_preferences(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text('{"messages": []}')
    with pytest.raises(DataError, match="must be an object with input, preferred_output, non_preferred_output"):
        load_preferences(tmp_path / "c.jsonl")
    with pytest.raises(DataError, match="holds no preferences"):
        load_preferences(save_empty(tmp_path))


def save_empty(folder):
    (folder / "d.jsonl").write_text("\n")
    return folder / "d.jsonl"


def test_the_aligned_answers_are_preferred_over_harm_and_over_refusal():
    pairs = load_preferences("synthetic:alignment-preferences")
    kinds = {pair.preferred.category == "benign" for pair in pairs}
    assert kinds == {True, False}
    assert all(
        pair.preferred.prompt == pair.other.prompt and pair.preferred.answer != pair.other.answer for pair in pairs
    )
