# SPDX-License-Identifier: Apache-2.0
"""TVaccine against a dense reference written from the equations, in fp64; what is frozen, and what memory it takes."""

import math
from functools import partial

import pytest
import torch

from contract import trainers
from contract.trainers import distance, dpo, plain, trained, weights
from moored.data.tiny import tiny_model, tiny_rows
from moored.defenses import t_vaccine
from moored.defenses.lisa import Lisa
from moored.defenses.t_vaccine import TVaccine, draw_layers
from moored.defenses.vaccine import Vaccine
from moored.errors import ConfigError, NeverSupported, NotYetSupported
from moored.hf import recompute
from moored.protect import protect


@pytest.fixture
def deep(monkeypatch):
    """Tiny models of any depth instead of two layers."""
    shallow = trainers.model

    def use(layers, **config):
        monkeypatch.setattr(trainers, "model", lambda *a: shallow(*a, num_hidden_layers=layers, **config))

    return use


def harmful(n=4):
    return tiny_rows(n, "harmful", 7)


def cross_entropy(model, batch, embedded):
    """Mean over answer tokens of -log p; the embedded tokens are given, so that nothing is learnt through them."""
    logits = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    picked = labels != -100
    log_p = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -(log_p[picked].sum() / picked.sum())


def output_gradients(model, batch, layers):
    """dL/de_l by differentiating with respect to the attention outputs themselves."""
    outputs = []
    hooks = [
        model.model.layers[i].self_attn.register_forward_hook(lambda m, a, out: outputs.append(out[0])) for i in layers
    ]
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    grads = torch.autograd.grad(cross_entropy(model, batch, embedded), outputs)
    for hook in hooks:
        hook.remove()
    return grads


def reference_step(model, batch, layers, rho, lr):
    """One SGD step on the sampled layers and on what stands above all layers."""
    grads = output_gradients(model, batch, layers)
    norm = sum(g.square().sum() for g in grads).sqrt()
    hooks = [
        model.model.layers[i].self_attn.register_forward_hook(lambda m, a, out, e=rho * g / norm: (out[0] + e, out[1]))
        for i, g in zip(layers, grads, strict=True)
    ]
    params = dict(model.named_parameters())
    loss = cross_entropy(model, batch, model.get_input_embeddings()(batch["input_ids"]).detach())
    steps = dict(zip(params, torch.autograd.grad(loss, list(params.values()), allow_unused=True), strict=True))
    for hook in hooks:
        hook.remove()
    still = [f"model.layers.{i}." for i in range(len(model.model.layers)) if i not in layers]
    moved = {n: g for n, g in steps.items() if g is not None and not n.startswith(tuple(still))}
    return {n: (p - lr * moved[n] if n in moved else p).detach() for n, p in params.items()}


@pytest.mark.parametrize("tied", [False, True])
def test_one_step_equals_the_dense_reference(tied, deep, tmp_path):
    deep(4, tie_word_embeddings=tied)
    trainer = plain(tmp_path, n=4, batch=4, optim="sgd", learning_rate=0.5, max_grad_norm=0.0)
    trainer.model.double()
    twin = tiny_model("llama", num_hidden_layers=4, tie_word_embeddings=tied).double()
    twin.load_state_dict(trainer.model.state_dict())
    batches, collate = [], trainer.data_collator
    defense = TVaccine(rho=0.7, layers=2, probes=2)
    protect(trainer, defense, harmful=harmful(2))
    rows = [collate([row]) for row in trainer.moored.rows("harmful")]
    trainer.data_collator = lambda rows: batches.append(collate(rows)) or batches[-1]
    got = trained(trainer)

    scores = sum(torch.stack([g.norm() for g in output_gradients(twin, row, range(4))]) for row in rows) / 2
    state = trainer.moored.state(defense)
    assert torch.allclose(state["p"], scores / scores.sum(), rtol=1e-6)
    sampled = state["sampled"].tolist()
    assert len(set(sampled)) == 2
    batch = next(b for b in batches if len(b["input_ids"]) == 4)
    assert distance(got, reference_step(twin, batch, sampled, 0.7, 0.5)) < 1e-6
    assert distance(got, reference_step(twin, batch, sampled, 0.0, 0.5)) > 1e-5
    assert distance(got, reference_step(twin, batch, [0, 1, 2, 3], 0.7, 0.5)) > 1e-4


def test_all_layers_are_vaccine_bit_for_bit(tmp_path):
    vaccine = trained(protect(plain(tmp_path / "a", lora=True, dropout=0.1), Vaccine(rho=3.0)))
    assert (
        distance(vaccine, trained(protect(plain(tmp_path / "b", lora=True, dropout=0.1), TVaccine(layers=None)))) == 0
    )


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_layers_are_drawn_one_after_the_other_with_their_probabilities():
    p = torch.tensor([0.5, 0.3, 0.2, 0.0])
    draws = [draw_layers(p, 2, seeded(step)) for step in range(4000)]
    assert draws[7] == draw_layers(p, 2, seeded(7))
    assert all(len(set(d)) == 2 for d in draws)
    for i in range(3):
        others = [j for j in range(3) if j != i]
        wanted = p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in others)
        assert sum(i in d for d in draws) / 4000 == pytest.approx(float(wanted), abs=0.03)
    assert draw_layers(p, 4, seeded(0)) == [0, 1, 2, 3]
    assert all(3 not in d for d in draws)


def sampled_in(names, sampled):
    return {n for n in names if any(f"layers.{i}." in n for i in sampled)}


@pytest.mark.parametrize("make", [plain, dpo], ids=["plain", "dpo"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_layers_do_not_move_under_weight_decay_or_a_pull(make, checkpointing, deep, tmp_path):
    """DPO's reference pass makes PEFT switch all adapters on again; Lisa gives frozen weights a gradient of zero."""
    deep(4)
    settings = {"weight_decay": 0.5, "gradient_checkpointing": checkpointing}
    trainer = make(tmp_path, n=12, lora=True, **settings)
    before = weights(trainer)
    defense = TVaccine(rho=1.0, layers=1, probes=2)
    protect(trainer, Lisa(rho=0.5, align_steps=0), defense, harmful=trainers.role("harmful", make.__name__))
    after = trained(trainer)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == sampled_in(before, trainer.moored.state(defense)["sampled"].tolist())


def test_a_layer_that_is_drawn_again_is_trained_again(tmp_path):
    trainer = plain(tmp_path, n=24)
    defense = TVaccine(rho=0.0, layers=1, sample_steps=1, probes=2)
    drawn, draw = [], t_vaccine.draw_layers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(t_vaccine, "draw_layers", lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1])
        before = weights(trainer)
        after = trained(protect(trainer, defense, harmful=harmful()))
    assert len(drawn) == 6
    assert {i for layers in drawn for i in layers} == {0, 1}
    assert {n for n in before if not torch.equal(before[n], after[n])} == set(before) - {"model.embed_tokens.weight"}


def test_probing_leaves_no_trace(tmp_path):
    """With all layers sampled the probabilities do not matter, so more probes must not change a bit."""
    runs = [
        trained(
            protect(
                plain(tmp_path / str(probes), lora=True, dropout=0.1, accumulate=2),
                TVaccine(layers=2, probes=probes, probability_steps=every),
                harmful=harmful(),
            )
        )
        for probes, every in ((1, 100), (5, 1))
    ]
    assert distance(*runs) == 0


def test_scores_that_are_no_numbers_leave_equal_shares(tmp_path, monkeypatch):
    trainer, defense = plain(tmp_path, n=4), TVaccine(layers=1)
    monkeypatch.setattr(TVaccine, "scores", lambda self, ctx: torch.tensor([math.nan, 1.0], dtype=torch.float64))
    protect(trainer, defense, harmful=harmful()).train()
    assert trainer.moored.state(defense)["p"].tolist() == [0.5, 0.5]


class Saved:
    """Bytes that autograd keeps for backward: now, and at most."""

    def __init__(self, model):
        self.own = {p.data_ptr() for p in model.parameters()}
        self.now = self.peak = 0

    def pack(self, tensor):
        return Held(self, tensor)


class Held:
    def __init__(self, counter, tensor):
        self.counter, self.tensor = counter, tensor
        self.size = 0 if tensor.data_ptr() in counter.own else tensor.numel() * tensor.element_size()
        counter.now += self.size
        counter.peak = max(counter.peak, counter.now)

    def __del__(self):
        self.counter.now -= self.size


def peak(trainer):
    """Hooks inside of hooks hide from the outer ones what is kept, so those of `Recompute` count by themselves."""
    saved, hooks = Saved(trainer.model), torch.autograd.graph.saved_tensors_hooks

    def pack(own, tensor):
        kept = own(tensor)
        return saved.pack(kept) if isinstance(kept, torch.Tensor) else kept

    def unpack(own, kept):
        return kept.tensor if isinstance(kept, Held) else own(kept)

    with pytest.MonkeyPatch.context() as patch, hooks(saved.pack, lambda held: held.tensor):
        patch.setattr(recompute, "saved_tensors_hooks", lambda p, u: hooks(partial(pack, p), partial(unpack, u)))
        trainer.train()
    return saved.peak


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_activations_below_the_lowest_sampled_layer_are_not_kept(lora, deep, tmp_path, monkeypatch):
    deep(8)
    monkeypatch.setattr(t_vaccine, "draw_layers", lambda *a, **k: [6, 7])
    vaccine = peak(protect(plain(tmp_path / "a", n=16, batch=16, lora=lora), Vaccine(rho=3.0)))
    targeted = peak(protect(plain(tmp_path / "b", n=16, batch=16, lora=lora), TVaccine(probes=2), harmful=harmful()))
    assert targeted < 0.4 * vaccine


@pytest.mark.parametrize("arch", ["llama", "gemma", "phi3", "qwen3_moe", "gpt2"])
def test_recomputed_activations_change_no_bit_and_take_less_memory(arch, tmp_path, monkeypatch):
    def run(fits, folder):
        monkeypatch.setattr(recompute.Recompute, "fits", staticmethod(lambda args: fits))
        trainer = protect(plain(folder, n=8, arch=arch), TVaccine(layers=1, probes=1), harmful=harmful())
        most = peak(trainer)
        return weights(trainer), most

    (kept, much), (again, little) = run(False, tmp_path / "a"), run(True, tmp_path / "b")
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert little < much if arch in ("llama", "gemma", "phi3") else little <= much


def test_the_reference_pass_of_dpo_keeps_the_memory_low(deep, tmp_path, monkeypatch):
    """Without holding, every step after the first would build the whole graph."""
    deep(8)
    monkeypatch.setattr(t_vaccine, "draw_layers", lambda *a, **k: [6, 7])
    settings = {"n": 16, "batch": 8, "gradient_checkpointing": False}
    vaccine = peak(protect(dpo(tmp_path / "a", **settings), Vaccine(rho=3.0)))
    rows = trainers.role("harmful", "dpo")
    targeted = peak(protect(dpo(tmp_path / "b", **settings), TVaccine(probes=1), harmful=rows))
    assert targeted < 0.6 * vaccine


def test_only_layers_with_trained_weights_are_sampled(deep, tmp_path, monkeypatch):
    deep(4)
    chosen = trainers.LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1, 3], task_type="CAUSAL_LM")
    monkeypatch.setattr(trainers, "LORA", chosen)
    trainer, defense = plain(tmp_path, n=8, lora=True), TVaccine(layers=2, probes=1)
    protect(trainer, defense, harmful=harmful()).train()
    assert trainer.moored.state(defense)["sampled"].tolist() == [1, 3]


@pytest.mark.parametrize("arch", ["qwen2", "gemma", "phi3", "gpt2", "opt"])
def test_nothing_below_the_sampled_layer_is_trained_in_any_architecture(arch, tmp_path):
    trainer, defense = plain(tmp_path, n=4, arch=arch), TVaccine(layers=1, probes=1)
    before = weights(trainer)
    after = trained(protect(trainer, defense, harmful=harmful()))
    (sampled,) = trainer.moored.state(defense)["sampled"].tolist()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    inside = [n for n in before if f".{1 - sampled}." in n]
    below = [n for n in before if any(part in n for part in ("wpe", "embed_positions"))]
    assert not moved & {*inside, *below}
    assert [n for n in moved if f".{sampled}." in n]
    assert [n for n in moved if "norm" in n or "ln_f" in n or "lm_head" in n]


def test_too_many_layers_reentrant_checkpointing_and_processes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="samples 3 layers, but 2 layers have trained weights"):
        protect(plain(tmp_path), TVaccine(layers=3), harmful=harmful()).train()
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(NeverSupported, match="use_reentrant"):
        protect(plain(tmp_path, **reentrant), TVaccine(), harmful=harmful())
    trainer = plain(tmp_path)
    trainer.args.__class__ = type("Two", (type(trainer.args),), {"world_size": 2})
    with pytest.raises(NotYetSupported, match="train in one process"):
        protect(trainer, TVaccine(), harmful=harmful())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rho": -1.0}, "`rho` of TVaccine must be >= 0; got -1.0"),
        ({"layers": 0}, '`layers` of TVaccine must be an integer >= 1, "auto" or None; got 0'),
        ({"sample_steps": 0}, "`sample_steps` of TVaccine must be an integer >= 1; got 0"),
        ({"probes": 0}, "`probes` of TVaccine must be an integer >= 1; got 0"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ConfigError, match=message):
        TVaccine(**parameters)
