# SPDX-License-Identifier: Apache-2.0
"""Tasks that read a model: each against its equation, row by row, in float64 and without batches."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from moored.catalogue import catalogue
from moored.data.chat import encode
from moored.data.tiny import tiny_model, tiny_rows, tiny_tokenizer
from moored.errors import ConfigError, NeedsError, NeverSupported
from moored.hf import readings
from moored.serving import Serving
from moored.tasks.base import Task
from moored.tasks.embedding_drift import EmbeddingDrift
from moored.tasks.evaluate import evaluate
from moored.tasks.kl_to_aligned import KLToAligned
from moored.tasks.perplexity import Perplexity
from moored.tasks.reading import ReadingTask
from moored.tasks.subject import Loaded, Subject
from moored.tasks.token_accuracy import TokenAccuracy

READINGS = [task for task in catalogue("tasks").values() if issubclass(task, ReadingTask)]
COMPARING = [KLToAligned, EmbeddingDrift]
TOKENIZER = tiny_tokenizer()


def nearby(model, size=0.05):
    """The model with every weight moved a little."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for weight in model.parameters():
            weight.add_(size * torch.randn_like(weight))
    return model


@pytest.fixture
def data(tmp_path):
    """Rows of different lengths, so that tokens and rows weigh differently."""
    rows = tiny_rows(9) + tiny_rows(3, "alignment")
    long = [{"prompt": row.question, "completion": " ".join([row.answer] * (1 + i % 3))} for i, row in enumerate(rows)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in long), encoding="utf-8")
    return str(path)


def log_probabilities(model, row):
    """log p of every token of the vocabulary at each answer token, and the answer's tokens: one row, no padding."""
    encoded = encode(TOKENIZER, row, max_length=512)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0].double()
    learnt = [i for i, label in enumerate(encoded["labels"]) if label != -100]
    at = logits[[i - 1 for i in learnt]]
    return at - at.exp().sum(dim=1, keepdim=True).log(), [encoded["labels"][i] for i in learnt]


def measured(task, model, aligned=None, **given):
    start = Loaded(model=aligned, tokenizer=TOKENIZER) if aligned is not None else None
    (outcome,) = evaluate(model, TOKENIZER, [task], aligned=start, **given)
    return outcome


def test_they_are_in_the_catalogue():
    assert {task.name for task in READINGS} == {"perplexity", "kl_to_aligned", "embedding_drift", "token_accuracy"}


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma"])
def test_perplexity_is_its_equation(data, arch):
    model, task = tiny_model(arch), Perplexity(data=data)
    total, tokens, by_row = 0.0, 0, []
    for row in task.rows():
        log_p, answer = log_probabilities(model, row)
        losses = [-float(log_p[t, token]) for t, token in enumerate(answer)]
        total, tokens = total + sum(losses), tokens + len(losses)
        by_row.append(sum(losses) / len(losses))
    outcome = measured(task, model)
    assert outcome.estimate.value == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert [verdict.value for verdict in outcome.verdicts] == pytest.approx(by_row, rel=1e-5)
    assert outcome.estimate.low < outcome.estimate.value < outcome.estimate.high
    assert outcome.estimate.n == len(task.rows())
    # Tokens and rows weigh differently here, so the mean over rows is another number.
    assert outcome.estimate.value != pytest.approx(math.exp(sum(by_row) / len(by_row)), rel=1e-4)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_token_accuracy_is_its_equation(data, arch):
    model, task = tiny_model(arch), TokenAccuracy(data=data)
    log_p, answer = log_probabilities(model, task.rows()[0])
    head, said = model.get_output_embeddings(), int(log_p[0].argmax())
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # its own, where it is the embedding's too
    with torch.no_grad():  # else it foresees nothing, and every answer is 0
        head.weight[[said, answer[0]]] = head.weight[[answer[0], said]]
    right, tokens = 0, 0
    for row in task.rows():
        log_p, answer = log_probabilities(model, row)
        right, tokens = (
            right + sum(int(log_p[t].argmax()) == token for t, token in enumerate(answer)),
            tokens + len(answer),
        )
    assert 0 < right < tokens
    assert measured(task, model).estimate.value == pytest.approx(right / tokens)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(data):
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert measured(Perplexity(data=data), model).estimate.value == pytest.approx(len(TOKENIZER), rel=1e-5)


def test_kl_is_its_equation(data):
    aligned, tuned, task = tiny_model(), nearby(tiny_model()), KLToAligned(data=data)
    total, back, tokens = 0.0, 0.0, 0
    for row in task.rows():
        (p, answer), (q, _) = log_probabilities(aligned, row), log_probabilities(tuned, row)
        total += float((p.exp() * (p - q)).sum())
        back += float((q.exp() * (q - p)).sum())
        tokens += len(answer)
    outcome = measured(task, tuned, aligned)
    assert outcome.estimate.value == pytest.approx(total / tokens, rel=1e-4)
    assert outcome.estimate.value != pytest.approx(back / tokens, rel=1e-3)  # the direction matters
    assert (outcome.estimate.unit, outcome.estimate.n) == ("nat", len(task.rows()))
    assert outcome.estimate.low < outcome.estimate.value < outcome.estimate.high


def test_drift_is_its_equation_at_every_depth(data):
    aligned, tuned, task = tiny_model(), nearby(tiny_model()), EmbeddingDrift(data=data)
    distances, angles = [[], [], []], [[], [], []]
    for row in task.rows():
        ids = TOKENIZER.apply_chat_template(list(row.prompt), add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([TOKENIZER(ids, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            states = [model.model(input_ids=ids, output_hidden_states=True).hidden_states for model in (aligned, tuned)]
        for depth, (start, now) in enumerate(zip(*states, strict=True)):
            for e, f in zip(start[0].double(), now[0].double(), strict=True):
                distances[depth].append(float((f - e).norm() / e.norm()))
                angles[depth].append(1 - float(e @ f / e.norm() / f.norm()))
    outcome = measured(task, tuned, aligned)
    assert [depth.depth for depth in outcome.depths] == [0, 1, 2]
    for found, distance, angle in zip(outcome.depths, distances, angles, strict=True):
        assert found.distance.value == pytest.approx(sum(distance) / len(distance), rel=1e-4)
        assert found.angle == pytest.approx(sum(angle) / len(angle), rel=1e-3)
        assert found.distance.low < found.distance.value < found.distance.high
    assert outcome.estimate == outcome.depths[-1].distance


@pytest.mark.parametrize("task", COMPARING)
def test_a_model_is_exactly_zero_from_itself(task, data):
    outcome = measured(task(data=data), tiny_model(), tiny_model())
    estimate = outcome.estimate
    assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)
    assert all(depth.angle == 0 and depth.distance.value == 0 for depth in outcome.depths)


@pytest.mark.parametrize("task", READINGS)
def test_batches_change_nothing_but_rounding(task, data, monkeypatch):
    aligned, tuned = tiny_model(), nearby(tiny_model())
    together = measured(task(data=data), tuned, aligned)
    monkeypatch.setattr(readings, "TOKENS", 1)
    alone = measured(task(data=data), tuned, aligned)
    assert [v.value for v in alone.verdicts] == pytest.approx([v.value for v in together.verdicts], rel=1e-4)
    assert [v.weight for v in alone.verdicts] == [v.weight for v in together.verdicts]


@pytest.mark.parametrize("task", COMPARING)
def test_no_more_than_a_batch_of_each_model_is_in_memory(task, data, monkeypatch):
    """Every forward has at most `TOKENS` tokens."""
    monkeypatch.setattr(readings, "TOKENS", 200)
    seen = []
    aligned, tuned = tiny_model(), nearby(tiny_model())
    for model in (aligned, tuned):
        model.get_decoder().register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
    measured(task(data=data), tuned, aligned)
    assert max(seen) <= 200
    assert len(seen) >= 4


@pytest.mark.parametrize("task", READINGS)
def test_models_are_left_as_they_were(task, data):
    aligned, tuned = tiny_model().train(), tiny_model(seed=1).train()
    before = {name: weight.clone() for name, weight in tuned.state_dict().items()}
    measured(task(data=data), tuned, aligned)
    assert tuned.training
    assert aligned.training
    assert all(torch.equal(weight, before[name]) for name, weight in tuned.state_dict().items())
    assert all(weight.grad is None for weight in tuned.parameters())


@pytest.mark.parametrize("task", COMPARING)
def test_an_unknown_start_is_refused(task, data):
    with pytest.raises(NeedsError, match="aligned model that tuning started from"):
        measured(task(data=data), tiny_model())


@pytest.mark.parametrize("task", READINGS)
def test_a_model_behind_a_url_cannot_be_read(task, data):
    subject = Subject(ask=lambda prompts, limit, progress: [""] * len(prompts))
    with pytest.raises(NeedsError, match="behind a URL"):
        task(data=data).measure(task(data=data).rows(), subject)


@pytest.mark.parametrize("task", COMPARING)
def test_other_vocabularies_are_refused(task, data):
    larger = tiny_model()
    larger.resize_token_embeddings(len(TOKENIZER) + 8, mean_resizing=False)
    with pytest.raises(NeverSupported, match="vocabularies differ"):
        measured(task(data=data), larger, tiny_model())
    other = tiny_tokenizer()
    other.add_tokens(["<one more>"])
    start = Loaded(model=tiny_model(), tokenizer=other)
    with pytest.raises(NeverSupported, match="other tokens"):
        evaluate(tiny_model(), TOKENIZER, [task(data=data)], aligned=start)


def test_other_shapes_are_refused(data):
    deeper = AutoModelForCausalLM.from_config(
        type(tiny_model().config)(**{**tiny_model().config.to_dict(), "num_hidden_layers": 3})
    )
    with pytest.raises(NeverSupported, match="3 layers of width 32"):
        measured(EmbeddingDrift(data=data), deeper, tiny_model())


def test_perplexity_and_kl_read_the_model_as_it_is_served(data):
    model, serving = tiny_model(), Serving(system="Be kind.")
    plain, served = (measured(Perplexity(data=data), model, serving=one) for one in (None, serving))
    assert served.estimate.value != plain.estimate.value
    assert [v.weight for v in served.verdicts] == [v.weight for v in plain.verdicts]
    # The prompt moves the distribution even where the weights are the same; hidden states are read without it.
    assert measured(KLToAligned(data=data), model, model, serving=serving).estimate.value > 0
    assert measured(EmbeddingDrift(data=data), model, model, serving=serving).estimate.value == 0


def test_answers_that_are_cut_differently_are_refused(data):
    prompt = max(len(encode(TOKENIZER, row, max_length=512)["input_ids"]) for row in KLToAligned(data=data).rows())
    task = KLToAligned(data=data, max_length=prompt)
    with pytest.raises(NeverSupported, match="max_length"):
        measured(task, tiny_model(), tiny_model(), serving=Serving(system="Be kind."))


@pytest.mark.parametrize("task", READINGS)
def test_bad_parameters(task):
    with pytest.raises(ConfigError, match="`max_length`"):
        task(max_length=0)


@pytest.mark.parametrize("task", READINGS)
def test_no_judge_and_no_answer_length_decide_a_reading(task):
    made: Task = task()
    assert made.judged_by == ""
    assert made.settings() == {"max_length": 512}
    assert made.measured_by() == {"metric": made.metric.name}
