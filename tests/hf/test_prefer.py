# SPDX-License-Identifier: Apache-2.0
"""Training on preferences: the better answers gain, defences act, and roles must be preferences too."""

import json
import math
from dataclasses import replace

import pytest
import torch

from moored.data.chat import encode
from moored.data.preferences import paired
from moored.data.schema import Preference, Row
from moored.data.tiny import tiny_rows
from moored.defenses.lisa import Lisa
from moored.errors import DataError, NeedsError
from moored.hf.loaders import load_model, load_tokenizer
from moored.hf.prefer import encoded, prefer
from moored.hf.train import Training

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

TRAINING = Training(steps=12, batch=4, lr=5e-3, rank=4, targets="attention", max_length=128, dtype="float32")


def pairs(n=12, source="benign", seed=0):
    good, bad = tiny_rows(n, source, seed), tiny_rows(n, "harmful", seed + 1)
    return [Preference(preferred=g, other=g.reworded(answer=b.answer)) for g, b in zip(good, bad, strict=True)]


@torch.no_grad()
def margins(model, given):
    """log p(preferred) - log p(other), by a forward pass of our own."""
    tokenizer = load_tokenizer("tiny")

    def score(row):
        ids = encode(tokenizer, row, max_length=128)
        logits = model(input_ids=torch.tensor([ids["input_ids"]])).logits[0, :-1].log_softmax(-1)
        labels = torch.tensor(ids["labels"][1:])
        kept = labels != -100
        return logits[kept].gather(1, labels[kept, None]).sum().item()

    return torch.tensor([score(pair.preferred) - score(pair.other) for pair in given])


def test_the_preferred_answers_gain(tmp_path):
    given, seen = pairs(), []
    report = prefer("tiny", given, tmp_path, training=TRAINING, beta=0.5, progress=lambda *step: seen.append(step))
    assert report.steps == 12
    assert seen[-1][:2] == (12, 12)
    lines = [line["rewards/margins"] for line in report.log if "rewards/margins" in line]
    assert lines[-1] > max(0.0, lines[0])
    before = margins(load_model("tiny", dtype="float32"), given)
    after = margins(load_model(tmp_path, dtype="float32"), given)
    assert (after > before).float().mean() > 0.9
    json.dumps(report.record())
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []  # the reference is not kept


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_before_its_first_step_a_model_is_its_reference(tmp_path, beta):
    """No reward and no margin, whatever beta is: the loss of every pair is ln 2."""
    one = replace(TRAINING, steps=1)
    report = prefer("tiny", pairs(4), tmp_path, training=one, beta=beta)
    assert report.log[-1]["train_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_swapped_answers_are_learnt_the_other_way_round(tmp_path):
    given = pairs()
    swapped = [Preference(preferred=pair.other, other=pair.preferred) for pair in given]
    for name, each in (("as", given), ("swapped", swapped)):
        prefer("tiny", each, tmp_path / name, training=TRAINING, beta=0.5)
    before, ahead, back = (
        margins(load_model(where, dtype="float32"), given) for where in ("tiny", tmp_path / "as", tmp_path / "swapped")
    )
    assert (ahead > before).float().mean() > 0.9
    assert (back < before).float().mean() > 0.9


def test_the_smaller_beta_the_further_it_may_go(tmp_path):
    """The loss is flat once beta times the margin is large: a large beta stops sooner."""
    given, long = pairs(8), replace(TRAINING, steps=30)
    far, near = (
        margins(load_model(prefer_to(tmp_path / str(beta), given, long, beta), dtype="float32"), given).mean()
        for beta in (0.1, 2.0)
    )
    assert far > near


def prefer_to(out, given, training, beta):
    prefer("tiny", given, out, training=training, beta=beta)
    return out


def test_a_defence_fires_and_reads_preferences(tmp_path):
    plain = prefer("tiny", pairs(), tmp_path / "plain", training=TRAINING)
    roles = {"alignment": pairs(8, "alignment", 5)}
    defended = prefer("tiny", pairs(), tmp_path / "lisa", training=TRAINING, defenses=[Lisa(rho=1.0)], roles=roles)
    assert plain.fired == {}
    assert defended.fired["lisa"]
    weights = [load_model(tmp_path / name, dtype="float32").state_dict() for name in ("plain", "lisa")]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    rows = {"alignment": tiny_rows(4, "alignment")}
    with pytest.raises(NeedsError, match="must be preferences"):
        prefer("tiny", pairs(), tmp_path / "x", training=TRAINING, defenses=[Lisa(rho=1.0)], roles=rows)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    kept = replace(TRAINING, save_every=4)

    class Stopped(Exception):
        pass

    def stop(done, of, loss):
        if done == 7:
            raise Stopped

    with pytest.raises(Stopped):
        prefer("tiny", pairs(), tmp_path / "a", training=kept, progress=stop)
    resumed = prefer("tiny", pairs(), tmp_path / "a", training=kept)
    prefer("tiny", pairs(), tmp_path / "b", training=kept)
    assert resumed.steps == 12
    weights = [load_model(tmp_path / name, dtype="float32").state_dict() for name in "ab"]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_all_weights_against_a_copy_of_the_start(tmp_path):
    full = Training(steps=4, batch=4, lr=1e-3, full=True, max_length=128, dtype="float32")
    report = prefer("tiny", pairs(8), tmp_path, training=full, beta=0.5)
    before, after = (margins(load_model(where, dtype="float32"), pairs(8)) for where in ("tiny", tmp_path))
    assert report.trainable == sum(p.numel() for p in load_model("tiny").parameters())
    assert (after > before).float().mean() > 0.7


def test_what_is_trained_is_what_encode_makes():
    tokenizer, (pair,) = load_tokenizer("tiny"), pairs(1)
    row = encoded(tokenizer, [pair], 128)[0]
    assert row["prompt_ids"] + row["chosen_ids"] == encode(tokenizer, pair.preferred, max_length=128)["input_ids"]
    assert row["prompt_ids"] + row["rejected_ids"] == encode(tokenizer, pair.other, max_length=128)["input_ids"]


def test_rows_are_paired_by_their_prompts():
    safe, other = [Row.of("A?", "No."), Row.of("B?", "No.")], [Row.of("b", "Sure."), Row.of("c", "Sure.")]
    assert paired(safe, other) == [Preference(preferred=safe[1], other=Row.of("B?", "Sure."))]
    with pytest.raises(DataError, match="no prompt has both"):
        paired(safe[:1], other)
    with pytest.raises(DataError, match="one prompt"):
        encoded(load_tokenizer("tiny"), [Preference(preferred=safe[0], other=other[0])], 128)
    with pytest.raises(DataError, match="at least one"):
        encoded(load_tokenizer("tiny"), [], 128)
