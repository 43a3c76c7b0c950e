# SPDX-License-Identifier: Apache-2.0
"""The search over repairs: its rule, what it leaves out, what it writes."""

import json
import random
from dataclasses import dataclass
from typing import ClassVar

import pytest

import moored.choose
from moored.catalogue import catalogue, make
from moored.choose import AS_IS, SEARCH, VALIDATION, choose, front, ladders, named
from moored.cli import main
from moored.errors import ConfigError, JudgeError, NeedsError
from moored.judges.base import Exchange, Verdict
from moored.metrics.base import Estimate
from moored.metrics.harmful_share import HarmfulShare
from moored.repairs.baselines import Interpolate, ScaleAdapter
from moored.repairs.engine import repair
from moored.repairs.safe_lora import SafeLoRA
from moored.report.record import Record
from moored.tasks import TASKS
from moored.tasks.base import Outcome
from moored.tasks.harmful_requests import HarmfulRequests
from repairs.repair_models import digests, weights

SCALES = (0.75, 0.5, 0.25)


def outcome(task, value, half):
    """A made-up outcome, 100 judged answers."""
    estimate = Estimate(value=value, low=max(0.0, value - half), high=min(100.0, value + half), n=100)
    verdict = Verdict(value=1.0, reason="", judge="made up")
    exchange = Exchange(prompt="Hi", answer="Hello", reference="")
    return Outcome(task=task.name, version="1", estimate=estimate, exchanges=(exchange,), verdicts=(verdict,))


@pytest.fixture
def measured(monkeypatch):
    """Numbers that depend on the share of the adapter that is left; returns the shares that were asked about."""
    asked, curve = [], {"harm": lambda s: 100 * s**2, "utility": lambda s: 40 + 50 * s}

    def norm(adapter):
        found = [t.norm() ** 2 for name, t in weights(adapter).items() if "lora_B" in name] if adapter else []
        return float(sum(found)) ** 0.5

    def evaluate(model, tokenizer, tasks, *, serving=None):
        size = norm(model)
        asked.append(size)
        share = size / asked[1] if len(asked) > 1 else 0.0  # the tuned model as it is comes second
        harm, utility = curve["harm"](share), curve["utility"](share)
        if harm is None:
            raise JudgeError("none of the answers could be judged")
        values = {
            "harmful_requests": (harm, 10),
            "over_refusal": (evaluate.refused.get(round(share, 6), 20.0), 5),
            "utility": (utility, 5),
            "judged": (100 - harm, 5),
        }
        return [outcome(task, *values[task.name]) for task in tasks]

    monkeypatch.setattr(moored.choose, "evaluate", evaluate)
    monkeypatch.setattr(moored.choose, "load_model", lambda where, adapter, dtype, device: adapter)
    monkeypatch.setattr(moored.choose, "load_tokenizer", lambda where: None)
    evaluate.asked, evaluate.curve, evaluate.refused = asked, curve, {}
    return evaluate


def scales(*values):
    return [ScaleAdapter(scale=value) for value in values]


def test_the_most_useful_of_the_safe_ones_is_written(trio, measured, tmp_path):
    before = digests(trio.adapter)
    found = choose(trio.adapter, aligned=trio.aligned, out=tmp_path / "out", candidates=scales(0.25, 0.3, 0.5))
    # the aligned model is at 0 with an interval up to 10: 100 s^2 is below that for 0.3 and 0.25
    assert (found.chosen, found.back) == ("ScaleAdapter(scale=0.3)", True)
    repair(trio.adapter, ScaleAdapter(scale=0.3), aligned=trio.aligned, out=tmp_path / "same")
    assert weights(tmp_path / "out").keys() == weights(tmp_path / "same").keys()
    assert all((weights(tmp_path / "out")[k] == t).all() for k, t in weights(tmp_path / "same").items())
    report = json.loads((tmp_path / "out/moored.json").read_text())
    assert report["out"] == str(tmp_path / "out")
    assert "ScaleAdapter(scale=0.3) was chosen among 4 on validation prompts" in report["notes"][-1]
    record = Record.load(tmp_path / "out" / SEARCH)
    assert [arm.name for arm in record.arms] == [
        "aligned",
        AS_IS,
        *(f"ScaleAdapter(scale={s})" for s in (0.25, 0.3, 0.5)),
    ]
    assert [arm.name for arm in front(record)] == [*(arm.name for arm in record.arms[2:]), AS_IS]
    assert [arm.name for arm in record.arms if arm.note == "chosen"] == ["ScaleAdapter(scale=0.3)"]
    assert [len(arm.repairs) for arm in record.arms] == [0, 0, 1, 1, 1]
    assert digests(trio.adapter) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "same"]


def test_if_nothing_is_safe_again_that_is_said(trio, measured, tmp_path):
    found = choose(trio.adapter, aligned=trio.aligned, out=tmp_path / "out", candidates=scales(0.5, 0.75))
    assert (found.chosen, found.back) == ("ScaleAdapter(scale=0.5)", False)
    assert "no candidate of 3 brings the harmful score back" in found.report.notes[-1]


def test_a_safe_model_is_left_as_it_is(trio, measured, tmp_path):
    measured.curve["harm"] = lambda share: 5.0
    found = choose(trio.adapter, aligned=trio.aligned, out=tmp_path / "out", candidates=scales(0.5))
    assert (found.chosen, found.back, found.report.changed) == (AS_IS, True, 0)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_written_is_never_worse_than_no_repair(seed, trio, measured, tmp_path):
    """Whatever the candidates measure; the aligned model's interval ends at 30."""
    draw = random.Random(seed)
    curves = {name: {s: draw.uniform(0, 60) for s in (*SCALES, 1.0)} | {0.0: 20.0} for name in ("harm", "utility")}
    measured.curve |= {name: (lambda share, own=own: own[round(share, 6)]) for name, own in curves.items()}
    found = choose(trio.adapter, aligned=trio.aligned, out=tmp_path / "out", candidates=scales(*SCALES))
    share = {AS_IS: 1.0, **{named(s): s.scale for s in scales(*SCALES)}}[found.chosen]
    harm, utility = (curve[share] for curve in curves.values())
    nothing = {name: curve[1.0] for name, curve in curves.items()}
    safe = [s for s in (*SCALES, 1.0) if curves["harm"][s] <= 30]
    assert found.back == bool(safe) == (harm <= 30)
    assert harm == min(curves["harm"][s] for s in (*SCALES, 1.0)) <= nothing["harm"] or safe
    assert utility == max((curves["utility"][s] for s in safe), default=utility)
    assert nothing["harm"] > 30 or utility >= nothing["utility"]


@dataclass(frozen=True, kw_only=True)
class Judged(HarmfulRequests):
    """Another number about safety, which does not decide."""

    name: ClassVar[str] = "judged"

    @property
    def metric(self):
        """Graded."""
        return HarmfulShare()


def test_further_tasks_do_not_decide_wherever_they_stand(trio, measured, tmp_path):
    """What the rule reads and what the report says of it are the same numbers."""
    tasks = [make("tasks", name) for name in TASKS]
    first = choose(trio.adapter, aligned=trio.aligned, out=tmp_path / "a", candidates=scales(0.3, 0.5), tasks=tasks)
    tasks = [Judged(), *tasks[::-1]]
    other = choose(trio.adapter, aligned=trio.aligned, out=tmp_path / "b", candidates=scales(0.3, 0.5), tasks=tasks)
    assert other.chosen == first.chosen == "ScaleAdapter(scale=0.3)"
    assert other.report.notes[-1] == first.report.notes[-1]
    assert "judged" in other.record.arms[0].metrics


def test_a_candidate_that_is_beaten_is_not_on_the_front(trio, measured, tmp_path):
    measured.curve["utility"] = lambda share: 90.0 if share in (0.0, 1.0) else 50.0
    candidates = scales(0.25, 0.5, 0.75)
    measured.refused = {0.75: 0.0}
    record = choose(trio.adapter, aligned=trio.aligned, out=tmp_path / "out", candidates=candidates).record
    # 0.75 is less safe than 0.25 and no more useful, but refuses less; 0.5 has nothing
    names = ["ScaleAdapter(scale=0.25)", "ScaleAdapter(scale=0.75)", AS_IS]
    assert [arm.name for arm in front(record)] == names


def test_candidates_are_named_by_what_is_not_a_default():
    assert named(SafeLoRA(fraction=0.5)) == "SafeLoRA(fraction=0.5)"
    assert named(SafeLoRA()) == "SafeLoRA()"
    assert named(ScaleAdapter()) == "ScaleAdapter(scale=0.5)"


def test_what_cannot_be_tried_is_said_and_what_is_the_same_is_not_measured_twice(trio, measured, tmp_path):
    candidates = [ScaleAdapter(scale=0.5), Interpolate(lam=0.5), SafeLoRA(fraction=0.5), SafeLoRA(fraction=1.0)]
    found = choose(trio.adapter, aligned=trio.aligned, out=tmp_path / "out", candidates=candidates)
    same, needs = found.record.warnings
    assert same == "Interpolate(lam=0.5) was left out: it gives the weights of ScaleAdapter(scale=0.5)"
    assert needs.startswith("SafeLoRA was left out: safe_lora needs `base`")
    assert len(measured.asked) == 3


def test_a_candidate_that_speaks_nonsense_is_left_out(trio, measured, tmp_path):
    measured.curve["harm"] = lambda share: None if 0 < share < 1 else 50.0 * share
    found = choose(trio.adapter, aligned=trio.aligned, out=tmp_path / "out", candidates=scales(0.5))
    assert found.chosen == AS_IS
    assert found.record.warnings == ["ScaleAdapter(scale=0.5) was left out: none of the answers could be judged"]


def test_every_repair_has_strengths_that_repair():
    steps = ladders()
    assert {type(step) for step in steps} == set(catalogue("repairs").values())
    for step in steps:
        null = type(step).info.null
        assert not null or any(getattr(step, name) != value for name, value in null.items())
    assert ladders(["scale-adapter"]) == scales(*SCALES)


@pytest.mark.parametrize("name", TASKS)
def test_the_prompts_are_not_those_of_an_audit(name):
    asked = {row.question for row in make("tasks", name, **VALIDATION).rows()}
    assert asked
    assert not asked & {row.question for row in make("tasks", name, n=64).rows()}


def test_wrong_use_leaves_nothing_behind(trio, measured, tmp_path):
    out = tmp_path / "new/out"
    with pytest.raises(NeedsError, match="auto needs `aligned`"):
        repair(trio.adapter, "auto", out=out)
    with pytest.raises(ConfigError, match="exactly one with the metric accuracy"):
        choose(trio.adapter, aligned=trio.aligned, out=out, tasks=[make("tasks", "harmful_requests")])
    measured.curve["harm"] = lambda share: None
    with pytest.raises(JudgeError):
        choose(trio.adapter, aligned=trio.aligned, out=out, candidates=scales(0.5))
    assert not list(tmp_path.glob("new/*"))
    out.mkdir(parents=True)
    with pytest.raises(ConfigError, match="exists"):
        choose(trio.adapter, aligned=trio.aligned, out=out)


@pytest.mark.parametrize(("least", "code"), [(0.0, 0), (60.0, 4)])
def test_the_command(trio, measured, tmp_path, capsys, least, code):
    measured.curve["harm"] = lambda share: least + 40 * share**2 if share else 0.0
    words = ["repair", str(trio.adapter), "--aligned", str(trio.aligned), "--method", "auto", "--n", "8"]
    words += ["--try", "scale_adapter", "--try", "drop-modules"]
    assert main([*words, "--out", str(tmp_path / "out"), "--html", str(tmp_path / "search.html")]) == code
    assert "ScaleAdapter(scale=0.25)" in (tmp_path / "search.html").read_text()
    said = capsys.readouterr().out
    assert "Aligned model" in said
    assert "as it is" in said
    assert ("was chosen among 7" in said) == (code == 0)


def test_options_that_do_not_go_together(trio, tmp_path, capsys):
    words = ["repair", str(trio.adapter), "--out", str(tmp_path / "out")]
    assert main([*words, "--try", "dare"]) == 2
    assert main([*words, "--method", "auto", "--set", "scale=0.5"]) == 2
    said = capsys.readouterr().err
    assert "are for --method auto" in said
    assert "--try" in said


def test_a_real_search(trio, tmp_path, monkeypatch):
    """Generation and judging are real; what a random model says means nothing."""
    from moored.data.tiny import tiny_tokenizer

    monkeypatch.setattr(moored.choose, "load_tokenizer", lambda where: tiny_tokenizer())
    tasks = [make("tasks", name, n=4, max_new_tokens=4) for name in TASKS]
    found = choose(trio.adapter, aligned=trio.aligned, out=tmp_path / "out", candidates=scales(0.5), tasks=tasks)
    assert {name for arm in found.record.arms for name in arm.metrics} == set(TASKS)
    assert (tmp_path / "out/adapter_config.json").is_file()
