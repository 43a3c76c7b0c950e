# SPDX-License-Identifier: Apache-2.0
"""What a repair may not depend on: how an update is factored and scaled, and what else is in memory."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moored.hf.checkpoint import Weight
from moored.method import MODELS, Need
from moored.repairs.base import Delta, Layer
from moored.repairs.baselines import DropModules
from moored.repairs.sa_lora import SaLoRA
from moored.repairs.safe_lora import SafeLoRA
from repairs.repair_cases import active, every, on_model, run, updates
from repairs.repair_models import factors, weights

FACTORED = {"antidote", "somf"}
"""Repairs that by default edit entries of factors, which mean nothing by themselves; on the update they may not."""


def changed(folder, out, change, **config):
    """A copy of an adapter with other factors, module by module."""
    out.mkdir(parents=True)
    held = json.loads((folder / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(held | config))
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in [key for key in tensors if ".lora_A." in key]:
        other = key.replace(".lora_A.", ".lora_B.")
        a, b = change(tensors[key].double(), tensors[other].double())
        tensors |= {key: a.float().contiguous(), other: b.float().contiguous()}
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    return out


def refactored(folder, out, seed):
    """The same updates from other factors on another scale: B G^-1 / 4, G A and four times alpha."""
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).double()).Q
    turn = turn @ torch.tensor([0.5, 1.0, 2.0, 3.0]).double().diag()
    return changed(folder, out, lambda a, b: (turn @ a, b @ torch.linalg.inv(turn) / 4), lora_alpha=32)


def apart(one, two):
    """The largest relative distance of two sets of updates."""
    return max(float((two[module] - update).norm() / update.norm().clamp(min=1e-9)) for module, update in one.items())


@every
def test_the_product_decides_and_not_its_factors(name, trio, tmp_path):
    other = {
        n: refactored(getattr(trio, n), tmp_path / n, seed) for seed, n in enumerate(("adapter", "unaligned", "safe"))
    }
    twins = {need: other[need] for need in ("unaligned", "safe")}
    assert apart(updates(trio.adapter, trio), updates(other["adapter"], trio)) < 1e-5
    method = on_model(active(name))
    run(trio, method, tmp_path / "plain")
    run(trio, method, tmp_path / "turned", other["adapter"], **twins)
    assert apart(updates(tmp_path / "plain", trio), updates(tmp_path / "turned", trio)) < 0.01
    if name in FACTORED:
        run(trio, active(name), tmp_path / "factors")
        run(trio, active(name), tmp_path / "turned factors", other["adapter"], **twins)
        assert apart(updates(tmp_path / "factors", trio), updates(tmp_path / "turned factors", trio)) > 0.1
    else:
        assert method == active(name)


def nearly_cancelling(a, b):
    """Columns of which all but a millionth cancels: the Gram form of their cosine is NaN."""
    tiny = 1e-6
    return torch.stack([a[0], a[0], tiny * a[1], tiny * a[2]]), torch.stack(
        [b[:, 0], -b[:, 0], b[:, 1], b[:, 2]], dim=1
    )


@every
def test_ill_conditioned_factors_give_numbers(name, trio, tmp_path):
    adapter = changed(trio.adapter, tmp_path / "ill", nearly_cancelling)
    report = run(trio, active(name), tmp_path / "out", adapter)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())
    for row in report.modules:
        a, b = factors(adapter)[row.module]
        assert row.norm == pytest.approx(float((2 * b.double() @ a.double()).norm()), rel=1e-3)
        assert row.cosine is None or 0 <= row.cosine <= 1
        assert row.signed is None or -1 <= row.signed <= 1


PROJECTORS = [SaLoRA(rank=4), SafeLoRA(fraction=1.0, rank=4), DropModules(fraction=1.0)]


@pytest.mark.parametrize("method", PROJECTORS, ids=lambda method: method.info.name)
def test_projecting_twice_is_projecting_once(method, trio, tmp_path):
    run(trio, method, tmp_path / "once")
    run(trio, method, tmp_path / "twice", tmp_path / "once")
    once, twice = updates(tmp_path / "once", trio), updates(tmp_path / "twice", trio)
    assert max(float((twice[module] - update).abs().max()) for module, update in once.items()) < 1e-6
    assert apart(updates(trio.adapter, trio), once) > 0.1


def test_the_operator_of_the_paper_is_no_projector(trio, tmp_path):
    run(trio, SafeLoRA(fraction=1.0), tmp_path / "once")
    run(trio, SafeLoRA(fraction=1.0), tmp_path / "twice", tmp_path / "once")
    assert apart(updates(tmp_path / "once", trio), updates(tmp_path / "twice", trio)) > 0.1


@dataclass(frozen=True, kw_only=True)
class Held(Weight):
    """A weight in memory."""

    tensor: torch.Tensor

    @classmethod
    def of(cls, tensor):
        """Of that tensor."""
        shape = tuple(tensor.shape)
        return cls(file=Path("memory"), key="weight", shape=shape, dtype="F32", start=0, tensor=tensor)

    def read(self):
        """The tensor."""
        return self.tensor


@every
def test_streaming_equals_in_memory(name, trio, tmp_path):
    """All layers of all models at once, without the engine."""
    method = active(name)
    if method.needs() - MODELS:
        pytest.skip("runs a model; its own tests compare with activations that are held in memory")
    aligned, base = weights(trio.aligned), weights(trio.base)

    def update(adapter, module):
        a, b = factors(adapter)[module]
        return Delta(b=b, a=a, scale=2.0)

    layers = [
        Layer(
            module=module,
            delta=update(trio.adapter, module),
            aligned=Held.of(aligned[f"{module}.weight"]),
            base=Held.of(base[f"{module}.weight"]),
            others={
                need: lambda need=need, module=module: update(getattr(trio, need), module)
                for need in (Need.UNALIGNED, Need.SAFE)
            },
        )
        for module in factors(trio.adapter)
    ]
    order = [layer.module for layer in layers]
    scores = {layer.module: method.score(layer) for layer in layers}
    chosen = method.select(list(scores.values()))
    report = run(trio, method, tmp_path / "out")
    streamed = updates(tmp_path / "out", trio)
    for layer, row in zip(layers, sorted(report.modules, key=lambda row: order.index(row.module)), strict=True):
        new = method.edit(layer, scores[layer.module]) if layer.module in chosen else layer.delta
        torch.testing.assert_close(streamed[layer.module], new.dense().float(), rtol=0, atol=1e-6)
        assert row.edited == (not torch.equal(new.dense(), layer.delta.dense()))
        score = scores[row.module]
        assert (row.norm, row.cosine, row.signed) == pytest.approx((score.norm, score.cosine, score.signed))
