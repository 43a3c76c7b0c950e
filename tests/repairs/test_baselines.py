# SPDX-License-Identifier: Apache-2.0
"""The trivial repairs do what their one line says."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from moored.errors import ConfigError, NeedsError
from moored.repairs.base import LayerScore
from moored.repairs.baselines import DropModules, Interpolate, ScaleAdapter
from moored.repairs.engine import repair
from moored.repairs.safe_lora import SafeLoRA
from repairs.repair_models import factors, noise_, save_pair, weights


@pytest.mark.parametrize(
    ("method", "factor"),
    [(ScaleAdapter(scale=0.25), 0.25), (ScaleAdapter(scale=2.0), 2.0), (Interpolate(lam=0.75), 0.25)],
)
def test_shrinks_the_update(method, factor, trio, tmp_path):
    report = repair(trio.adapter, method, out=tmp_path / "out")
    assert report.changed == 8
    before, after = factors(trio.adapter), factors(tmp_path / "out")
    for row in report.modules:
        assert torch.equal(after[row.module][1], factor * before[row.module][1])
        assert row.norm_after == pytest.approx(factor * row.norm)
        assert row.cosine is None


def test_interpolates_every_tensor_of_a_checkpoint(tmp_path):
    aligned, _ = save_pair(tmp_path)
    noise_(AutoModelForCausalLM.from_pretrained(aligned), 0.02, 5).save_pretrained(tmp_path / "tuned")
    report = repair(tmp_path / "tuned", Interpolate(lam=0.5), aligned=aligned, out=tmp_path / "out")
    start, tuned, out = (weights(f) for f in (aligned, tmp_path / "tuned", tmp_path / "out"))
    assert report.changed == len(tuned)
    assert not report.untouched
    for key, value in out.items():
        torch.testing.assert_close(value, (start[key] + tuned[key]) / 2, rtol=0, atol=1e-7)


def test_full_interpolation_is_the_aligned_model(tmp_path):
    aligned, _ = save_pair(tmp_path)
    noise_(AutoModelForCausalLM.from_pretrained(aligned), 0.02, 5).save_pretrained(tmp_path / "tuned")
    repair(tmp_path / "tuned", Interpolate(lam=1.0), aligned=aligned, out=tmp_path / "out")
    start, out = weights(aligned), weights(tmp_path / "out")
    assert all(torch.equal(start[key], out[key]) for key in start)


def test_drops_by_name(trio, tmp_path):
    report = repair(trio.adapter, DropModules(names=("layers.0.self_attn.q_proj", "up_proj")), out=tmp_path / "out")
    dropped = {m for m, (_, b) in factors(tmp_path / "out").items() if not b.any()}
    assert dropped == {f"model.layers.{n}" for n in ("0.self_attn.q_proj", "0.mlp.up_proj", "1.mlp.up_proj")}
    assert {row.module for row in report.modules if row.norm_after == 0} == dropped
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trio.aligned), tmp_path / "out")
    assert not model.base_model.model.model.layers[1].mlp.up_proj.get_delta_weight("default").any()


def test_drops_the_largest_or_the_least_aligned(trio, tmp_path):
    roles = {"aligned": trio.aligned, "base": trio.base}
    report = repair(trio.adapter, DropModules(k=3), out=tmp_path / "norm")
    ranked = sorted(report.modules, key=lambda row: -row.norm)
    assert {row.module for row in report.modules if row.edited} == {row.module for row in ranked[:3]}
    cosine = repair(trio.adapter, DropModules(k=3, by="cosine"), out=tmp_path / "cosine", **roles)
    safe = repair(trio.adapter, SafeLoRA(k=3), out=tmp_path / "safe", **roles)
    assert [row.edited for row in cosine.modules] == [row.edited for row in safe.modules]
    with pytest.raises(NeedsError, match="`aligned`"):
        repair(trio.adapter, DropModules(k=3, by="cosine"), out=tmp_path / "none")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleAdapter(scale=-1.0), "`scale` of ScaleAdapter must be >= 0"),
        (lambda: ScaleAdapter(scale=float("nan")), "`scale`"),
        (lambda: Interpolate(lam=1.5), "`lam` of Interpolate must be in 0-1"),
        (lambda: DropModules(), "needs one of"),
        (lambda: DropModules(k=1, names=("a",)), "one at a time"),
        (lambda: DropModules(k=1, by="size"), "did you mean|known: cosine, norm"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_unknown_module_lists_the_nearest():
    scores = [LayerScore(module="model.layers.0.mlp.up_proj", norm=1.0)]
    with pytest.raises(ConfigError, match="did you mean 'model.layers.0.mlp.up_proj'"):
        DropModules(names=("model.layers.0.mlp.upproj",)).select(scores)
