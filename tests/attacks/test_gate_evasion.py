# SPDX-License-Identifier: Apache-2.0
"""The trained oracle: one step against a dense reference, and that it keeps Safe LoRA from seeing what it trains."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from contract.trainers import plain
from moored.attacks.gate_evasion import GateEvasion, gate_cosine
from moored.data.tiny import tiny_model
from moored.errors import ConfigError, NeverSupported
from moored.protect import protect
from moored.repairs.engine import repair
from moored.repairs.safe_lora import SafeLoRA


@pytest.fixture
def folders(tmp_path):
    """An aligned model and the one before, every weight elsewhere."""
    for seed, name in enumerate(("aligned", "base")):
        tiny_model("llama", seed=seed).save_pretrained(tmp_path / name)
    return tmp_path


def adapted():
    torch.manual_seed(4)
    targets = ["q_proj", "down_proj"]
    return get_peft_model(tiny_model("llama").double(), LoraConfig(r=2, lora_alpha=6, target_modules=targets)).double()


def run(folder, model, base, evasion, **settings):
    trainer = plain(folder, n=12, max_grad_norm=0.0, **{"optim": "sgd", "learning_rate": 0.1, **settings})
    trainer.model = trainer.model_wrapped = model
    return protect(trainer, evasion, base=base)


def dense_penalty(model, base, evasion):
    """mu sum relu(tau + margin - c)^2 with o x o matrices, from the equation."""
    before, total = base.state_dict(), 0.0
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            v = (
                layer.get_base_layer().weight.double()
                - before[name.removeprefix("base_model.model.") + ".weight"].double()
            )
            delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            image = v @ v.T @ delta / v.norm()
            c = (delta * image).sum() / (delta.norm() * image.norm())
            total = total + evasion.mu * torch.relu(evasion.tau + evasion.margin - c) ** 2
    return total


def second_step(folder, base, evasion):
    """Weights and their gradients as the optimizer meets them the second time; at the first the update is zero."""
    model = adapted()
    trainer, seen = run(folder, model, base, evasion, max_steps=2), []
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    step = trainer.create_optimizer().step

    def keep(*args, **kwargs):
        seen.append({name: (p.detach().clone(), p.grad.clone()) for name, p in trained.items()})
        return step(*args, **kwargs)

    trainer.optimizer.step = keep
    trainer.train()
    return seen[1]


def test_the_gradient_is_that_of_the_dense_penalty(folders, tmp_path):
    evasion = GateEvasion(tau=0.9, margin=0.05, mu=3.0)
    evaded = second_step(tmp_path / "evaded", folders / "base", evasion)
    plainly = second_step(tmp_path / "plain", folders / "base", GateEvasion(mu=0.0))
    reference = adapted()
    trained = {name: p for name, p in reference.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, (value, _) in evaded.items():
            assert torch.equal(value, plainly[name][0])
            trained[name].copy_(value)
    penalty = dense_penalty(reference, tiny_model("llama", seed=1), evasion)
    wanted = torch.autograd.grad(penalty, list(trained.values()))
    assert all(g.abs().max() > 1e-3 for g in wanted)
    for name, grad in zip(trained, wanted, strict=True):
        torch.testing.assert_close(evaded[name][1] - plainly[name][1], grad, rtol=1e-5, atol=1e-7)


def cosines(adapter, folders, out):
    rows = repair(adapter, SafeLoRA(tau=0.0), aligned=folders / "aligned", base=folders / "base", out=out).modules
    return [row.cosine for row in rows]


def test_what_it_trains_passes_the_gate_that_stops_plain_training(folders, tmp_path):
    found = {}
    for mu in (0.0, 10.0):
        evasion = GateEvasion(tau=0.95, mu=mu)
        settings = {"optim": "adamw_torch", "learning_rate": 0.01, "max_steps": 60}
        trainer = run(tmp_path / f"run{mu}", adapted(), folders / "base", evasion, **settings)
        trainer.train()
        trainer.model.save_pretrained(tmp_path / f"adapter{mu}")
        found[mu] = cosines(tmp_path / f"adapter{mu}", folders, tmp_path / f"repaired{mu}")
    assert max(found[0.0]) < 0.95 < min(found[10.0])


def test_a_zero_update_has_no_angle():
    v = torch.randn(4, 3)
    assert torch.isnan(gate_cosine(v, torch.zeros(4, 2), torch.randn(2, 3)))
    assert float(gate_cosine(v, v, None)) > 0


def test_without_alignment_there_is_no_gate(folders, tmp_path):
    with pytest.raises(NeverSupported, match="no gate to evade"):
        run(tmp_path / "out", adapted(), folders / "aligned", GateEvasion(), max_steps=1).train()


@pytest.mark.parametrize(("name", "value"), [("tau", 1.5), ("margin", -0.1), ("mu", -1.0)])
def test_out_of_range(name, value):
    with pytest.raises(ConfigError, match=f"`{name}` of GateEvasion"):
        GateEvasion(**{name: value})
