# SPDX-License-Identifier: Apache-2.0
"""Safe Delta against a sweep in fp64, column by column, in which no matrix is factored."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from moored.data.chat import encode
from moored.data.tiny import tiny_rows, tiny_tokenizer
from moored.errors import CheckpointError, ConfigError, DataError, NeverSupported
from moored.hf.statistics import moments, same_inputs, summed
from moored.repairs.engine import repair
from moored.repairs.lab import Lab
from moored.repairs.safe_delta import SafeDelta, affordable, grouped, root_of_inverse, swept
from repairs.repair_models import factors, save_adapter, save_pair, weights

ROWS = tiny_rows(7, "alignment", 2)
ACTIVE = {"s": 30.0, "exclude": 0.2}
"""A budget of which a module of 32 columns spends about half."""


def curvature(aligned, module, damp=0.01):
    """H from the inputs of a module of the aligned model, all tokens of all rows, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(aligned).eval()
    seen = []
    model.get_submodule(module).register_forward_pre_hook(
        lambda m, args: seen.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        for row in ROWS:
            model(input_ids=torch.tensor([encode(tokenizer, row, max_length=512)["input_ids"]]))
    x = torch.cat(seen).double()
    h = 2 / len(ROWS) * x.T @ x
    for j in range(len(h)):
        if h[j, j] == 0:
            h[j, j] = 1.0
    return h + damp * h.diagonal().mean() * torch.eye(len(h))


def reference(delta, h, *, s, exclude, block=2048, step=1):
    """The new update, entry by entry; also which entries are kept.

    What is left to compensate with behind column j is the inverse of H without the columns to its left, G. A change e
    of column j then moves column k by e G_jk / G_jj.
    """
    delta, columns, outputs = delta.double(), len(h), len(delta)
    inverses = [torch.linalg.inv(h[j:, j:]) for j in range(columns)]
    sensitivity = [1 / float(g[0, 0]) for g in inverses]
    pull = torch.zeros_like(h)
    for j, g in enumerate(inverses):
        pull[j, j:] = g[0] / g[0, 0]
    new, change, chosen = torch.zeros_like(delta), torch.zeros_like(delta), torch.zeros_like(delta, dtype=torch.bool)
    for start in range(0, columns, block):
        own = range(start, min(start + block, columns))
        limit = math.inf if s is None else s * block / 4096 * outputs / 4096
        limit *= sum(sensitivity[j] for j in own) / len(own)
        moved = change[:, :start] @ pull[:start]
        entries = sorted((sensitivity[j], j, i) for j in own for i in range(outputs))
        spent = 0.0
        for cost, j, i in entries[: len(entries) - int(exclude * len(entries))]:
            spent += cost * float(delta[i, j] - moved[i, j]) ** 2
            if spent > limit:
                break
            chosen[i, j] = True
        for j in own:
            before = start + (j - start) // step * step
            free = change[:, :before] @ pull[:before, j]
            new[:, j] = torch.where(chosen[:, j], delta[:, j], free)
            change[:, j] = new[:, j] - free
    return new, chosen


def random_case(outputs=6, columns=12, tokens=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    ).double()
    x[:, 3] = 0.0
    delta = torch.randn(outputs, columns, generator=generator) * 0.1
    h = 2 / 5 * x.T @ x
    h[3, 3] = 1.0
    return delta, x, h + 0.01 * h.diagonal().mean() * torch.eye(columns)


@pytest.mark.parametrize("exclude", [0.0, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("s", [0.0, 1e4, 6e4, None])
@pytest.mark.parametrize(("block", "step"), [(2048, 4), (2048, 1), (5, 4), (5, 1), (12, 5), (4, 100)])
def test_the_sweep_is_that_of_the_equations(block, step, s, exclude, monkeypatch):
    monkeypatch.setattr("moored.repairs.safe_delta.CHUNK", 2)
    delta, x, h = random_case()
    root = root_of_inverse(x.T @ x, 5, 0.01)
    torch.testing.assert_close(root.double().T @ root.double(), torch.linalg.inv(h), rtol=1e-4, atol=1e-6)
    assert torch.equal(root, root.triu())
    s = s if s is None else s * 4096 / (block * 1000)
    expected, kept = reference(delta, h, s=s, exclude=exclude, block=block, step=step)
    found = swept(delta, root, s=s, exclude=exclude, block=block, step=step)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(found == delta, kept)
    if s and exclude < 0.5:
        assert 0 < kept.float().mean() < 1


def test_compensation_saves_what_safe_answers_would_lose():
    """Of the same entries kept; steps of 4 columns leave out what these do to each other."""
    delta, x, h = random_case(outputs=40)
    root = root_of_inverse(x.T @ x, 5, 0.01)
    cost = {}
    for step in (1, 4, 12):
        new = swept(delta, root, s=None, exclude=0.5, block=12, step=step).double()
        cost[step] = float(torch.trace(new @ h @ new.T))
    kept = torch.where(new == delta, delta, 0.0).double()
    assert cost[12] == pytest.approx(float(torch.trace(kept @ h @ kept.T)))  # nothing compensates within a step
    assert 0 < 1.5 * cost[1] < min(cost[4], cost[12])
    assert cost[12] < float(torch.trace(delta.double() @ h @ delta.double().T))


@pytest.mark.parametrize("layout", [{}, {"step": 4}, {"block": 24, "step": 3, "s": 1000.0}])
def test_a_model_is_repaired_as_the_equations_say(layout, trio, tmp_path):
    setting = ACTIVE | layout
    method = SafeDelta(**setting)
    repair(trio.adapter, method, aligned=trio.aligned, alignment=ROWS, merge=True, out=tmp_path / "out")
    start, after = weights(trio.aligned), weights(tmp_path / "out")
    shares = []
    for module, (a, b) in factors(trio.adapter).items():
        key = f"{module}.weight"
        expected, kept = reference(2 * b @ a, curvature(trio.aligned, module), **setting)
        torch.testing.assert_close(after[key].double() - start[key].double(), expected, rtol=0, atol=1e-6)
        shares.append(float(kept.float().mean()))
    assert all(0.05 < share < 0.79 for share in shares)


def test_ends_of_the_budget(trio, tmp_path):
    roles = {"aligned": trio.aligned, "alignment": ROWS, "merge": True}
    repair(trio.adapter, SafeDelta(s=0.0), out=tmp_path / "nothing", **roles)
    start = weights(trio.aligned)
    assert all(torch.equal(value, start[key]) for key, value in weights(tmp_path / "nothing").items())
    repair(trio.adapter, SafeDelta(s=None, exclude=0.0), out=tmp_path / "all", **roles)
    repair(trio.adapter, SafeDelta(s=1e9, exclude=0.0), out=tmp_path / "rich", **roles)
    whole = weights(tmp_path / "all")
    assert all(torch.equal(value, whole[key]) for key, value in weights(tmp_path / "rich").items())
    assert any(not torch.equal(value, start[key]) for key, value in whole.items())


def test_the_memory_changes_the_passes_and_nothing_else(trio, tmp_path, monkeypatch):
    passes = []
    sums = Lab.sums
    monkeypatch.setattr(Lab, "sums", lambda lab, *args: passes.append(len(args[2])) or sums(lab, *args))
    outputs = []
    gib = 2**30
    for memory in (1.0, 8 * 2 * 32**2 / gib, 1 / gib):
        method = SafeDelta(**ACTIVE, memory=memory)
        out = tmp_path / str(len(outputs))
        repair(trio.adapter, method, aligned=trio.aligned, alignment=ROWS, merge=True, out=out)
        outputs.append((passes.copy(), weights(out)))
        passes.clear()
    # two layers of q and v (one input), up, and down (64 wide)
    assert outputs[0][0] == [6]
    assert sum(outputs[1][0]) >= 6
    assert len(outputs[0][0]) < len(outputs[1][0]) < len(outputs[2][0])
    assert set(outputs[2][0]) == {1}
    for _, other in outputs[1:]:
        assert all(torch.equal(value, other[key]) for key, value in outputs[0][1].items())


def test_groups_share_what_has_one_input():
    widths = {"a": 10, "b": 10, "c": 20, "d": 10, "e": 30}
    twin = {"a": "a", "b": "a", "c": "c", "d": "a", "e": "e"}
    assert grouped(widths, twin, 1e9) == [["a", "b", "c", "d", "e"]]
    assert grouped(widths, twin, 8 * 500.0) == [["a", "b", "c", "d"], ["e"]]
    assert grouped(widths, twin, 8 * 100.0) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert grouped(widths, twin, 1.0) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_the_same_inputs_are_found():
    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.o, self.twice = (torch.nn.Linear(4, 4) for _ in range(4))
            self.never = torch.nn.Linear(4, 4)

        def forward(self, input_ids, attention_mask, use_cache):
            x = torch.eye(4)[input_ids]
            self.o(self.q(x) + self.k(x))
            self.twice(x)
            self.twice(x.clone())

    model = Toy()
    batch = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    modules = dict(model.named_children())
    assert same_inputs(model, modules, batch) == {"q": "q", "k": "q", "o": "o", "twice": "twice"}
    assert not any(module._forward_pre_hooks for module in modules.values())
    found = summed(model, {"x": (model.q, moments)}, [batch])["x"]
    assert torch.equal(found, torch.diag(torch.tensor([0.0, 1.0, 1.0, 0.0])).double())
    batch["labels"] = torch.tensor([[-100, 2]])
    found = summed(model, {"x": (model.q, moments)}, [batch], answers=True)["x"]
    assert torch.equal(found, torch.diag(torch.tensor([0.0, 0.0, 1.0, 0.0])).double())


@pytest.mark.parametrize("arch", ["gpt2", "opt"])
def test_other_layouts(arch, tmp_path):
    """GPT-2 stores (in, out); OPT's feed-forward puts lines and positions into one axis."""
    aligned, _ = save_pair(tmp_path, arch=arch)
    config = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    config = config if arch == "gpt2" else {"target_modules": ["q_proj", "fc1", "fc2"]}
    adapter = save_adapter(aligned, tmp_path / "adapter", **config)
    method = SafeDelta(**ACTIVE)
    report = repair(adapter, method, aligned=aligned, alignment=ROWS, merge=True, out=tmp_path / "out")
    assert report.changed == len(report.modules)
    module = next(m for m in factors(adapter) if m.endswith(("h.1.attn.c_attn", "layers.1.fc2")))
    a, b = factors(adapter)[module]
    key = f"{module}.weight"
    moved = weights(tmp_path / "out")[key].double() - weights(aligned)[key].double()
    expected, _ = reference(2 * b @ a, curvature(aligned, module), **ACTIVE)
    torch.testing.assert_close(moved.T if arch == "gpt2" else moved, expected, rtol=0, atol=1e-6)


def test_ties_go_by_column_and_row():
    gap, d = torch.ones(2, 3), torch.ones(3)
    assert affordable(gap, d, 3.0, 0.0).tolist() == [[True, True, False], [True, False, False]]
    assert affordable(gap, d, None, 0.5).tolist() == [[True, True, False], [True, False, False]]
    assert affordable(gap, torch.tensor([1.0, 3.0, 2.0]), None, 0.5).tolist() == [
        [False, True, True],
        [False, True, False],
    ]
    assert affordable(0 * gap, d, 0.0, 0.0).all()


def test_what_is_missing_or_wrong_is_said(trio, tmp_path):
    with pytest.raises(NeverSupported, match="--merge"):
        repair(trio.adapter, SafeDelta(), aligned=trio.aligned, alignment=ROWS, out=tmp_path / "out")
    with pytest.raises(DataError, match="`alignment` holds no rows"):
        repair(trio.adapter, SafeDelta(), aligned=trio.aligned, alignment=[], merge=True, out=tmp_path / "out")
    for kwargs, message in [
        ({"s": -1.0}, "`s` of SafeDelta must be >= 0"),
        ({"s": math.inf}, "`s` of SafeDelta"),
        ({"exclude": 1.5}, "`exclude` of SafeDelta must be in 0-1"),
        ({"damp": 0.0}, "`damp` of SafeDelta must be > 0"),
        ({"block": 0}, "`block` of SafeDelta must be an integer >= 1"),
        ({"step": 0}, "`step` of SafeDelta must be an integer >= 1"),
        ({"memory": 0.0}, "`memory` of SafeDelta must be > 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            SafeDelta(**kwargs)


def test_activations_that_are_not_finite_are_named(trio, tmp_path, monkeypatch):
    monkeypatch.setattr("moored.repairs.safe_delta.moments", lambda x: moments(x) * math.inf)
    with pytest.raises(CheckpointError, match="not finite on the safe rows"):
        repair(trio.adapter, SafeDelta(), aligned=trio.aligned, alignment=ROWS, merge=True, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
