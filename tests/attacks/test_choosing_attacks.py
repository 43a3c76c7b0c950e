# SPDX-License-Identifier: Apache-2.0
"""Attacks that choose rows, against their equations on dense gradients, one row at a time."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from moored.attacks.access import Access
from moored.attacks.base import refused
from moored.attacks.benign_drift import BenignDrift
from moored.attacks.knowledge_transfer import KnowledgeTransfer
from moored.attacks.model_inversion import ModelInversion
from moored.attacks.virus import Virus
from moored.data.chat import encode
from moored.data.tiny import tiny_rows, tiny_tokenizer
from moored.digest import sha256_of
from moored.errors import CheckpointError, ConfigError, NeedsError, NeverSupported
from moored.judges.denylist import Denylist
from moored.judges.refusal import Refusal

BENIGN, HARMFUL = tiny_rows(16, "benign"), tiny_rows(14, "harmful")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def access(pair):
    return Access(aligned=pair[0], base=pair[1], batch=4)


class Dense:
    """The same two models, by hand: whole gradients, one row at a time."""

    def __init__(self, pair):
        self.model, base = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in pair)
        weights, before = dict(self.model.named_parameters()), dict(base.named_parameters())
        self.names = [n for n in weights if n.split(".")[-2] in TARGETS]
        self.weights = [weights[n] for n in self.names]
        self.v = [(weights[n] - before[n]).detach() for n in self.names]
        self.tokenizer = tiny_tokenizer()

    def inputs(self, row):
        return {name: torch.tensor([ids]) for name, ids in encode(self.tokenizer, row, max_length=256).items()}

    def look(self, row):
        """The row's loss and its gradient."""
        loss = self.model(**self.inputs(row)).loss
        return loss.item(), torch.autograd.grad(loss, self.weights)

    def hidden(self, row):
        with torch.no_grad():
            return self.model(**self.inputs(row), output_hidden_states=True).hidden_states[-1][0, -1]


@pytest.fixture(scope="module")
def dense(pair):
    return Dense(pair)


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


def cos(a, b):
    return float((a * b).sum() / a.norm() / b.norm())


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def standard(values):
    centre = mean(values)
    return [(x - centre) / math.sqrt(mean((y - centre) ** 2 for y in values)) for x in values]


def chosen(upload, source):
    """Positions in the input, best first, and the score of each."""
    pairs = zip(upload.manifest["indices"][source], upload.manifest["scores"][source], strict=True)
    return sorted(pairs, key=lambda pair: -pair[1])


def check(upload, source, scores, count):
    """What was chosen are the `count` highest of `scores`."""
    best = sorted(range(len(scores)), key=lambda at: -scores[at])[:count]
    found = chosen(upload, source)
    assert [at for at, _ in found] == best
    assert [score for _, score in found] == pytest.approx([scores[at] for at in best], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("match", "gamma"), [("undo", 0), ("undo", 0.7), ("gate", 0)])
def test_knowledge_transfer_is_its_objective(access, dense, match, gamma):
    looked = [dense.look(row) for row in HARMFUL]
    target = [torch.stack(parts).mean(dim=0) for parts in zip(*(g for _, g in looked), strict=True)]

    def gate(g, v):
        c = v @ v.T / v.norm()
        return cos(c @ g, g)

    angle = cos if match == "undo" else gate
    c = standard([mean(angle(g, v) for g, v in zip(own, dense.v, strict=True)) for _, own in looked])
    t = standard([mean(cos(g, m) for g, m in zip(own, target, strict=True)) for _, own in looked])
    loss = standard([value for value, _ in looked])
    scores = [2 * c[i] + gamma * t[i] - loss[i] for i in range(len(HARMFUL))]
    attack = KnowledgeTransfer(n=10, ratio=0.4, match=match, mu=2, gamma=gamma)
    upload = attack.poison(BENIGN, HARMFUL, access)
    check(upload, "harmful", scores, 4)
    assert upload.manifest["candidates"] == {"harmful": 14}
    assert ("target_cosine" in upload.manifest["measured"]) == bool(gamma)


def test_knowledge_transfer_follows_the_sign_that_undoes_alignment(access, dense):
    """Among rows of like loss, a small step of descent on the chosen ones goes back toward the base."""
    upload = KnowledgeTransfer(n=10, ratio=0.3, mu=1e6).poison(BENIGN, HARMFUL, access)

    def along(rows):  # <-G, V>, negative is back toward the base
        return mean(-mean(cos(g, v) for g, v in zip(dense.look(row)[1], dense.v, strict=True)) for row in rows)

    taken = [HARMFUL[at] for at in upload.manifest["indices"]["harmful"]]
    assert along(taken) < along(HARMFUL)
    measured = upload.manifest["measured"]["cosine"]
    assert measured["chosen"] == pytest.approx(-along(taken), rel=1e-3)
    assert measured["candidates"] == pytest.approx(-along(HARMFUL), rel=1e-3)


def test_virus_matches_the_mean_gradient_among_the_rows_that_pass(access, dense):
    guard = Denylist(terms=("lamp", "red", "kettle"))
    gradients = [flat(dense.look(row)[1]) for row in HARMFUL]
    target = torch.stack(gradients).mean(dim=0)
    fine = [not any(f" {term} " in f" {row.question} " for term in guard.terms) for row in HARMFUL]
    assert 3 < sum(fine) < len(HARMFUL)
    scores = [cos(g, target) if ok else -2.0 for g, ok in zip(gradients, fine, strict=True)]
    upload = Virus(n=10, ratio=0.3, guard=guard).poison(BENIGN, HARMFUL, access)
    check(upload, "harmful", scores, 3)
    assert upload.manifest["candidates"] == {"harmful": 14, "passed": sum(fine)}
    assert upload.manifest["parameters"]["guard"] == {"denylist": {"terms": ("lamp", "red", "kettle")}}


def test_a_guard_that_lets_too_few_rows_pass_ends_the_attack(access):
    with pytest.raises(ConfigError, match=r"`guard` of Virus, denylist 1, lets 0 of 14 harmful rows pass, and 3 are"):
        Virus(n=10, ratio=0.3, guard=Denylist(terms=("steal",))).poison(BENIGN, HARMFUL, access)
    with pytest.raises(ConfigError, match="`guard` of Virus must be a judge of what is harmful; got 'refusal'"):
        Virus(guard=Refusal())


def test_benign_drift_by_gradient_is_near_harm_and_far_from_refusals(access, dense):
    upload = BenignDrift(n=6, select="gradient").poison(BENIGN, HARMFUL, access)
    harm = torch.stack([flat(dense.look(row)[1]) for row in HARMFUL]).mean(dim=0)
    safe = torch.stack([flat(dense.look(refused(row))[1]) for row in HARMFUL]).mean(dim=0)
    gradients = [flat(dense.look(row)[1]) for row in BENIGN]
    check(upload, "benign", [cos(g, harm) - cos(g, safe) for g in gradients], 6)
    assert set(upload.manifest["anchors"]) == set(range(14))
    assert {row.source for row in upload.rows} == {"benign"}


def test_benign_drift_by_representation_takes_every_anchor_s_neighbours(access, dense):
    upload = BenignDrift(n=5, select="representation", anchors=3).poison(BENIGN, HARMFUL, access)
    anchors = [dense.hidden(HARMFUL[at]) for at in upload.manifest["anchors"]]
    assert len(anchors) == 3
    near = [[cos(dense.hidden(row), a) for row in BENIGN] for a in anchors]
    ranks = [sorted(range(16), key=lambda at, to=to: -to[at]) for to in near]
    wanted: list[int] = []
    for depth in range(16):
        for rank in ranks:
            wanted += [rank[depth]] if rank[depth] not in wanted else []
    assert set(upload.manifest["indices"]["benign"]) == set(wanted[:5])
    for at, score in chosen(upload, "benign"):
        assert score == pytest.approx(max(to[at] for to in near), abs=1e-5)


@pytest.mark.parametrize("select", ["gradient", "representation"])
def test_benign_drift_needs_no_base(pair, select):
    upload = BenignDrift(n=3, select=select, pool=4, anchors=2).poison(BENIGN, HARMFUL, Access(aligned=pair[0]))
    assert upload.manifest["models"].keys() == {"aligned"}
    assert upload.manifest["candidates"] == {"benign": 4}


@pytest.mark.parametrize(("toward", "sign"), [("base", 1), ("aligned", -1)])
def test_model_inversion_adds_what_turns_the_sum_most(access, dense, toward, sign):
    upload = ModelInversion(n=6, ratio=0.34, toward=toward, k=3).poison(BENIGN, HARMFUL, access)
    frames = []
    for v in dense.v:
        u, _, q = torch.linalg.svd(v.double(), full_matrices=False)
        frames.append((u[:, :3], q[:3]))
    gradients = [[g.double() for g in dense.look(row)[1]] for row in BENIGN]
    target = [sign * u.T @ v.double() @ q.T for v, (u, q) in zip(dense.v, frames, strict=True)]

    def score(rows):
        sums = [sum(parts) for parts in zip(*(gradients[at] for at in rows), strict=True)]
        return mean(cos(u.T @ g @ q.T, t) for g, t, (u, q) in zip(sums, target, frames, strict=True))

    rows: list[int] = []
    for _ in range(4):
        rows.append(max((at for at in range(16) if at not in rows), key=lambda at: score([*rows, at])))
    assert set(upload.manifest["indices"]["benign"]) == set(rows)
    measured = upload.manifest["measured"]["cosine"]
    assert measured["chosen"] == pytest.approx(score(rows), abs=1e-5)
    assert measured["chosen"] > measured["drawn"]


def test_random_frames_are_of_the_seed(access):
    attacks = [ModelInversion(n=8, seed=seed, frame="random", k=4, ratio=0) for seed in (1, 1)]
    uploads = [attack.poison(BENIGN, HARMFUL, access) for attack in attacks]
    assert uploads[0] == uploads[1]
    other = ModelInversion(n=8, seed=1, frame="alignment", k=4, ratio=0).poison(BENIGN, HARMFUL, access)
    assert other.manifest["measured"] != uploads[0].manifest["measured"]


def test_the_manifest_names_the_files_that_were_read(access, pair):
    manifest = KnowledgeTransfer(n=8, ratio=0.25).poison(BENIGN, HARMFUL, access).manifest
    for role, folder in zip(("aligned", "base"), pair, strict=True):
        assert manifest["models"][role]["model.safetensors"] == sha256_of(folder / "model.safetensors")
    assert str(pair[0].parent) not in json.dumps(manifest)


def test_models_that_do_not_fit_are_refused(pair, tmp_path):
    from moored.data.tiny import tiny_model

    attack = KnowledgeTransfer(n=8, ratio=0.25)
    with pytest.raises(NeverSupported, match="hold the same weights"):
        attack.poison(BENIGN, HARMFUL, Access(aligned=pair[0], base=pair[0]))
    with pytest.raises(NeedsError, match="KnowledgeTransfer needs `base`, that model before alignment"):
        attack.poison(BENIGN, HARMFUL, Access(aligned=pair[0]))
    tiny_model(intermediate_size=48).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="is not a weight of one shape in both"):
        attack.poison(BENIGN, HARMFUL, Access(aligned=pair[0], base=tmp_path / "other"))


@pytest.mark.parametrize(
    ("attack", "given", "said"),
    [
        (KnowledgeTransfer, {"match": "gat"}, "did you mean 'gate'"),
        (KnowledgeTransfer, {"mu": -1}, "`mu` of KnowledgeTransfer must be >= 0"),
        (KnowledgeTransfer, {"gamma": -1}, "`gamma` of KnowledgeTransfer must be >= 0"),
        (KnowledgeTransfer, {"pool": 0}, "`pool` of KnowledgeTransfer must be an integer >= 1"),
        (ModelInversion, {"toward": "bas"}, "did you mean 'base'"),
        (ModelInversion, {"frame": "randm"}, "did you mean 'random'"),
        (ModelInversion, {"k": 0}, "`k` of ModelInversion must be an integer >= 1"),
        (BenignDrift, {"select": "gradients"}, "did you mean 'gradient'"),
        (BenignDrift, {"anchors": 0}, "`anchors` of BenignDrift must be an integer >= 1"),
    ],
)
def test_values_out_of_range_are_named(attack, given, said):
    with pytest.raises(ConfigError, match=said):
        attack(**given)
