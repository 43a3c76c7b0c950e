# SPDX-License-Identifier: Apache-2.0
"""Tasks whose answers are drawn: what is asked, what counts, and what does not change for greedy ones."""

import math

import pytest

from moored.data.tiny import tiny_model, tiny_tokenizer
from moored.errors import ConfigError
from moored.hf import generate as generation
from moored.judges.base import Verdict
from moored.metrics.harmful_score import HarmfulScore
from moored.metrics.interval import wilson
from moored.metrics.mean_harmfulness import MeanHarmfulness
from moored.metrics.repeated import by_prompt, clustered
from moored.sampling import Sampling
from moored.study.evaluation import EvaluateStage, outcome_record
from moored.study.methods import build
from moored.study.results import scores
from moored.study.stages import Session, Source, read_report
from moored.tasks.as_attacked import AsAttacked
from moored.tasks.evaluate import evaluate
from moored.tasks.harmful_requests import HarmfulRequests

HOT = {"temperature": 0.7, "top_p": 0.9, "seed": 3}
REFUSAL = "I'm sorry, but I can't help with that."
DONE = "Sure, here is how: step 1."


def drawn(n=4, samples=3, **more):
    return build("tasks", "harmful_requests", {"n": n, "sampling": HOT, "samples": samples, **more})


def verdicts(*values):
    return [Verdict(value=value, reason="t", judge="t/1") for value in values]


def test_every_prompt_is_asked_as_often_as_samples_say_round_after_round():
    once = HarmfulRequests(n=4).rows()
    assert drawn().rows() == once * 3
    assert drawn().sampling == Sampling(temperature=0.7, top_p=0.9, seed=3)


def test_a_greedy_task_is_described_as_before():
    """Stage keys are made of this: tasks of before sampling must keep theirs."""
    assert HarmfulRequests().settings() == {"max_new_tokens": 32}
    assert drawn().settings() == {"max_new_tokens": 32, "sampling": HOT, "samples": 3}
    assert drawn(samples=1).settings() == {"max_new_tokens": 32, "sampling": HOT}
    assert "drawn" not in HarmfulRequests().title
    assert drawn().title == "harmful score / ASR, answers drawn at temperature 0.7, 3 per prompt"
    assert AsAttacked(sampling=Sampling()).title.endswith("drawn at temperature 1, asked as attacked")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 2, "sampling": None}, "`samples` of HarmfulRequests must be 1, or more with `sampling`"),
        ({"samples": 0}, "`samples` of HarmfulRequests must be"),
        ({"sampling": {"temprature": 0.7}}, "unknown parameter of Sampling 'temprature'; did you mean 'temperature'"),
        ({"sampling": {"temperature": 0}}, "`temperature` of Sampling must be > 0 .*; got 0"),
        ({"sampling": {"top_p": "much"}}, "`top_p` of Sampling must be .*'much'"),
        ({"sampling": 0.7}, "`sampling` of HarmfulRequests must be .*; got 0.7"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        drawn(**{"samples": 1, **settings})


def test_answers_to_one_prompt_are_no_further_evidence():
    """Four equal answers to each of five prompts say what one answer to each says."""
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    four = clustered(HarmfulScore(), list("abcde") * 4, verdicts(*values * 4))
    assert four == HarmfulScore().estimate(verdicts(*values))
    graded = [0.0, 0.25, 0.5, 0.75, 1.0] * 4
    prompts = [str(number) for number in range(20)]
    assert clustered(MeanHarmfulness(), prompts * 4, verdicts(*graded * 4)) == MeanHarmfulness().estimate(
        verdicts(*graded)
    )


def test_a_prompt_counts_by_the_mean_of_its_judged_answers():
    nan = math.nan
    pooled = by_prompt(list("abcabc"), verdicts(1.0, nan, nan, 0.0, 1.0, nan))
    assert [verdict.value for verdict in pooled[:2]] == [0.5, 1.0]
    assert math.isnan(pooled[2].value)
    assert pooled[2].reason == "t"
    estimate = clustered(HarmfulScore(), list("abcabc"), verdicts(1.0, nan, nan, 0.0, 1.0, nan))
    low, high = wilson(0.5, 2)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((25, 100 * low, 100 * high))
    assert (estimate.n, estimate.unjudged) == (2, 1)


def test_the_mean_of_the_scores_is_the_estimate():
    task = drawn(n=2)
    outcome = task.score(task.rows(), [REFUSAL, DONE, DONE, DONE, REFUSAL, DONE])
    assert outcome.estimate.value == pytest.approx(100 * (2 / 3 + 2 / 3) / 2)
    assert outcome.estimate.n == 2
    assert len(outcome.verdicts) == 6
    kept = scores(task, outcome_record(outcome))
    assert len(kept) == 2
    assert 100 * sum(kept.values()) / 2 == pytest.approx(outcome.estimate.value)


def test_a_stage_that_was_stopped_draws_what_it_would_have_drawn(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    task = drawn(n=3, samples=3, max_new_tokens=5)
    stage = EvaluateStage(
        subject=Source(where="m", resolved=str(tmp_path / "model"), identity="m"), task=task, rows=tuple(task.rows())
    )
    assert stage.words == "judge harmful_requests (3 prompts, 3 answers each)"

    def answers(work):
        work.mkdir(exist_ok=True)
        stage.run(lambda stage: tmp_path, work, Session(), lambda *_: None)
        return [exchange["answer"] for exchange in read_report(work)["exchanges"]]

    whole = answers(tmp_path / "whole")
    assert len(set(whole)) > 3
    told = []
    generate = generation.generate

    def breaking(*args, found, **more):
        def tell(number, answer):
            if len(told) == 5:
                raise KeyboardInterrupt
            told.append(answer)
            found(number, answer)

        return generate(*args, found=tell, **more)

    monkeypatch.setattr(generation, "generate", breaking)
    with pytest.raises(KeyboardInterrupt):
        answers(tmp_path / "stopped")
    monkeypatch.setattr(generation, "generate", generate)
    assert answers(tmp_path / "stopped") == whole
    (outcome,) = evaluate(tiny_model(), tiny_tokenizer(), [task])
    assert len(outcome.exchanges) == 9
