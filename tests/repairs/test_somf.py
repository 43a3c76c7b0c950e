# SPDX-License-Identifier: Apache-2.0
"""SOMF against masks trained by plain autograd in fp64, its targets, and what a mask may not do."""

import math
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from moored.data.chat import encode
from moored.data.tiny import tiny_rows, tiny_tokenizer
from moored.errors import ConfigError, DataError, NeverSupported
from moored.hf.checkpoint import Checkpoint
from moored.hf.streams import drawn
from moored.repairs import somf
from moored.repairs.engine import repair
from moored.repairs.somf import SOMF, fused, sampled
from moored.repairs.tuned import open_tuned
from repairs.repair_models import factors, save_adapter, save_pair, weights

HARMFUL = tiny_rows(6, "harmful", 2)
SAFE = [
    replace(safe, messages=(*harmful.prompt, safe.messages[-1]))
    for harmful, safe in zip(HARMFUL, tiny_rows(6, "alignment", 2), strict=True)
]
SCALE = 2.0


def run(trio, out, method, harmful=HARMFUL, alignment=SAFE, **more):
    rows = {"harmful": harmful, "alignment": alignment}
    return repair(trio.adapter, method, aligned=trio.aligned, out=out, **rows, **more)


def noise_by_hand(like, stream):
    """Noise that depends on the shape alone, in the place of random noise."""
    place = torch.arange(like.numel(), dtype=torch.float64).reshape(like.shape)
    return (2 * torch.sin(place * 0.7 + like.shape[0])).to(like.dtype)


def ends(trio, target):
    """By module and tensor, where it started and what tuning made of it; and how they make an update."""
    tuned, safe = factors(trio.adapter), factors(trio.safe)
    found = {}
    for module, (a, b) in tuned.items():
        a, b = a.double(), b.double()
        if target == "factors":
            found[module, "b"] = (torch.zeros_like(b), b)
        elif target == "update":
            found[module, "b"] = (torch.zeros(len(b), a.shape[1], dtype=torch.float64), SCALE * b @ a)
        else:
            found |= {(module, "a"): (safe[module][0].double(), a), (module, "b"): (safe[module][1].double(), b)}
    return found, {m: a.double() for m, (a, _) in tuned.items()}


def updates(tensors, plain, target):
    """The update of every module."""
    made = {}
    for module in plain:
        b = tensors[module, "b"]
        made[module] = b if target == "update" else SCALE * b @ tensors.get((module, "a"), plain[module])
    return made


def log_prob(model, parameters, row):
    """Log-probability of one answer, the row by itself."""
    line = encode(tiny_tokenizer(), row, max_length=512)
    logits = functional_call(model, parameters, kwargs={"input_ids": torch.tensor([line["input_ids"]])}).logits[0]
    odds = logits.log_softmax(dim=-1)
    return sum(odds[t - 1, label] for t, label in enumerate(line["labels"]) if label != -100)


def by_hand(trio, target, steps, lr, batch):
    """Logits after steps of Adam on the DPO loss, and the tensors they are for."""
    model = AutoModelForCausalLM.from_pretrained(trio.aligned).double().eval()
    start = dict(model.named_parameters())
    both, plain = ends(trio, target)

    def parameters(tensors):
        return start | {f"{m}.weight": start[f"{m}.weight"] + u for m, u in updates(tensors, plain, target).items()}

    phi = {key: torch.zeros_like(end, requires_grad=True) for key, (_, end) in both.items()}
    first, second = ({key: torch.zeros_like(p) for key, p in phi.items()} for _ in range(2))
    with torch.no_grad():
        origin = parameters({key: begin for key, (begin, _) in both.items()})
        known = [(log_prob(model, origin, s), log_prob(model, origin, h)) for s, h in zip(SAFE, HARMFUL, strict=True)]
    for step in range(steps):
        masks = {key: torch.sigmoid((p + noise_by_hand(p.detach(), None)) / 0.5) for key, p in phi.items()}
        now = parameters({k: t0 + masks[k] * (t - t0) / masks[k].mean() for k, (t0, t) in both.items()})
        loss = 0.0
        for pair in drawn(step * batch, batch, len(SAFE), seed=0, salt=0):
            gain = log_prob(model, now, SAFE[pair]) - known[pair][0]
            gain = gain - (log_prob(model, now, HARMFUL[pair]) - known[pair][1])
            loss = loss - torch.nn.functional.logsigmoid(0.1 * gain) / batch
        grads = dict(zip(phi, torch.autograd.grad(loss, list(phi.values())), strict=True))
        rate = lr * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.no_grad():
            for key, grad in grads.items():
                first[key] = 0.9 * first[key] + 0.1 * grad
                second[key] = 0.999 * second[key] + 0.001 * grad**2
                m, v = first[key] / (1 - 0.9 ** (step + 1)), second[key] / (1 - 0.999 ** (step + 1))
                phi[key] -= rate * m / (v.sqrt() + 1e-8)
    return {key: p.detach() for key, p in phi.items()}, both, plain


@pytest.mark.parametrize("mask", ["soft", "binary"])
@pytest.mark.parametrize("target", ["factors", "update", "safe_factors"])
def test_is_the_mask_that_autograd_trains(target, mask, trio, tmp_path, monkeypatch):
    monkeypatch.setattr(somf, "logistic", noise_by_hand)
    more = {"safe": trio.safe} if target == "safe_factors" else {}
    method = SOMF(target=target, mask=mask, steps=3, lr=0.5, batch=5)
    report = run(trio, tmp_path / "out", method, merge=True, **more)
    assert report.changed == len(report.modules)
    phi, both, plain = by_hand(trio, target, 3, 0.5, 5)
    assert max(p.abs().max() for p in phi.values()) > 0.5
    masks = {key: torch.sigmoid(p) if mask == "soft" else (torch.sigmoid(p) > 0.5).double() for key, p in phi.items()}
    tensors = {key: t0 + masks[key] * (t - t0) / masks[key].mean() for key, (t0, t) in both.items()}
    start, after = weights(trio.aligned), weights(tmp_path / "out")
    for module, update in updates(tensors, plain, target).items():
        found = after[f"{module}.weight"].double() - start[f"{module}.weight"].double()
        torch.testing.assert_close(found, update, rtol=0, atol=1e-4 if mask == "soft" else 1e-6)
        plain_update = SCALE * (factors(trio.adapter)[module][1] @ factors(trio.adapter)[module][0]).double()
        assert torch.linalg.norm(update - plain_update) > 0.05 * plain_update.norm()


def test_an_adapter_stays_one_and_the_mean_of_b_is_kept_up(trio, tmp_path):
    report = run(trio, tmp_path / "out", SOMF(steps=5))
    old, new = factors(trio.adapter), factors(tmp_path / "out")
    kept = entries = 0
    for module, (a, b) in old.items():
        assert torch.equal(new[module][0], a)
        share = (new[module][1] != 0).float().mean()
        assert 0 < share < 1
        expected = torch.where(new[module][1] != 0, b / share, 0.0)
        torch.testing.assert_close(new[module][1], expected, rtol=1e-5, atol=0)
        kept, entries = kept + int((new[module][1] != 0).sum()), entries + b.numel()
    assert f"keeps {kept / entries:.0%} of {entries} entries in {len(old)} modules" in report.notes[-1]
    assert report.rows["harmful"]["rows"] == 6


def test_training_prefers_the_safe_answers(trio, tmp_path):
    report = run(trio, tmp_path / "out", SOMF(target="update", steps=40, lr=0.3, mask="soft"), merge=True)
    first, last = (float(word.rstrip(";")) for word in report.notes[-1].split("loss ")[1].split()[0:3:2])
    assert last < first - 0.01


def test_nothing_masked_changes_nothing_and_says_so(trio, tmp_path):
    report = run(trio, tmp_path / "out", SOMF(init=5.0, steps=2))
    assert report.changed == 0
    assert "keeps 100%" in report.notes[-1]
    one, two = trio.adapter / "adapter_model.safetensors", tmp_path / "out" / "adapter_model.safetensors"
    assert one.read_bytes() == two.read_bytes()


def test_everything_masked_leaves_the_aligned_model(trio, tmp_path):
    run(trio, tmp_path / "out", SOMF(init=-5.0, steps=2))
    assert all(not b.any() for _, b in factors(tmp_path / "out").values())


def test_a_mask_divides_by_its_mean_and_never_by_zero():
    start, end = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])
    assert fused(start, end, torch.tensor([[True, True]])) is end
    assert torch.equal(fused(start, end, torch.tensor([[True, False]])), torch.tensor([[5.0, 2.0]]))
    assert torch.equal(fused(start, end, torch.tensor([[False, False]])), start)


def test_noise_is_a_relaxed_bernoulli():
    phi = torch.full((200, 200), 0.7)
    own = sampled(phi, torch.Generator().manual_seed(0), 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = torch.distributions.RelaxedBernoulli(torch.tensor(0.5), logits=phi).sample()
    at = torch.linspace(0.01, 0.99, 50)
    torch.testing.assert_close(own.flatten().quantile(at), other.flatten().quantile(at), rtol=0, atol=0.02)
    assert float((own > 0.5).float().mean()) == pytest.approx(float(torch.sigmoid(torch.tensor(0.7))), abs=0.01)


def test_modules_that_no_row_reaches_stay(trio, tmp_path, monkeypatch):
    """Without a gradient there is nothing to decide by."""
    adding = somf._adding
    skip = iter([True])
    monkeypatch.setattr(
        somf, "_adding", lambda part: (lambda m, args, output: output) if next(skip, False) else adding(part)
    )
    report = run(trio, tmp_path / "out", SOMF(steps=2))
    assert [row.edited for row in report.modules] == [False] + [True] * (len(report.modules) - 1)


def test_rows_are_paired_by_prompt(trio, tmp_path):
    """Order and rows without a partner do not matter; no partner at all is an error."""
    run(trio, tmp_path / "one", SOMF(steps=2))
    run(trio, tmp_path / "two", SOMF(steps=2), harmful=[*tiny_rows(3, "harmful", 9), *HARMFUL[::-1]])
    one, two = (tmp_path / name / "adapter_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(DataError, match="no `alignment` row shares its prompt"):
        run(trio, tmp_path / "out", SOMF(), alignment=tiny_rows(3, "alignment"))


def test_the_seed_decides(trio, tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        run(trio, tmp_path / name, SOMF(steps=2, seed=seed))
    one, two = (tmp_path / name / "adapter_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() != two.read_bytes()


def test_chunks_add_up(trio, tmp_path, monkeypatch):
    """A batch that goes through the model in parts is the same batch."""
    run(trio, tmp_path / "one", SOMF(steps=2, mask="soft", batch=6))
    lab = somf.Lab.__init__
    monkeypatch.setattr(somf.Lab, "__init__", lambda self, *args, **options: lab(self, *args, batch=64, **options))
    run(trio, tmp_path / "two", SOMF(steps=2, mask="soft", batch=6))
    for module, (_, b) in factors(tmp_path / "one").items():
        torch.testing.assert_close(factors(tmp_path / "two")[module][1], b, rtol=0, atol=1e-6)


def test_refusals(trio, tmp_path):
    with pytest.raises(NeverSupported, match="--merge"):
        run(trio, tmp_path / "out", SOMF(target="update"))
    rows = {"harmful": HARMFUL, "alignment": SAFE}
    with pytest.raises(NeverSupported, match='target="update"'):
        repair(trio.base, SOMF(), aligned=trio.aligned, out=tmp_path / "out", **rows)
    other = save_adapter(trio.aligned, tmp_path / "other", r=8)
    with pytest.raises(NeverSupported, match="not continued from `safe`"):
        run(trio, tmp_path / "out", SOMF.paper(), safe=other)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt"])
def test_the_model_that_is_trained_is_the_aligned_one_and_the_update(arch, tmp_path):
    """GPT-2 stores (in, out); masked away or not masked, the model gives what transformers and PEFT give."""
    aligned, _ = save_pair(tmp_path, arch=arch)
    config = {
        "llama": {},
        "gpt2": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        "opt": {"target_modules": ["q_proj", "fc1", "fc2"]},
    }[arch]
    adapter = save_adapter(aligned, tmp_path / "adapter", **config)
    start = AutoModelForCausalLM.from_pretrained(aligned).eval()
    ids = torch.arange(5, 17).reshape(2, 6)
    lab = somf.Lab(open_tuned(adapter, aligned=Checkpoint.open(aligned)), {})
    layers = [lab.source.layer(name) for name in lab.source.modules]
    parts = {layer.module: somf._Part.of(SOMF(), layer) for layer in layers}
    with torch.no_grad(), somf._attached(lab, parts) as model:
        torch.testing.assert_close(model(ids).logits, start(ids).logits, rtol=0, atol=1e-5)
        for part in parts.values():
            part.now = part.end
        tuned = PeftModel.from_pretrained(start, adapter)
        expected = tuned(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(model(ids).logits, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"target": "b"}, "`target` of SOMF must be one of factors, update, safe_factors"),
        ({"mask": "hard"}, "`mask` of SOMF must be one of binary, soft"),
        ({"steps": -1}, "`steps` of SOMF must be an integer >= 0"),
        ({"lr": 0.0}, "`lr` of SOMF must be > 0"),
        ({"batch": 0}, "`batch` of SOMF must be an integer >= 1"),
    ],
)
def test_bad_parameters(parameters, said):
    with pytest.raises(ConfigError, match=said):
        SOMF(**parameters)
