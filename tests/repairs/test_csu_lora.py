# SPDX-License-Identifier: Apache-2.0
"""CSULoRA against its objective, minimised numerically, and against dense fp64 projectors."""

import pytest
import torch

from moored.errors import ConfigError
from moored.repairs.csu_lora import CSULoRA
from moored.repairs.engine import repair
from repairs.repair_models import factors, weights


def parts(update, v, rank, sides):
    """The parts of an update that are orthogonal to each other, the aligned one first; dense and in fp64."""
    u, _, qt = torch.linalg.svd(v.double(), full_matrices=False)
    p, r = u[:, :rank] @ u[:, :rank].T, qt[:rank].T @ qt[:rank]
    p_out, r_out = torch.eye(len(p)).double() - p, torch.eye(len(r)).double() - r
    d = update.double()
    if sides == "left":
        return [p @ d, p_out @ d]
    return [p @ d @ r, p @ d @ r_out + p_out @ d @ r, p_out @ d @ r_out]


def minimised(update, v, rank, sides, mu):
    """X by gradient descent on the penalised change: no closed form is used."""
    d = update.double()
    shares = [float(part.norm() ** 2 / d.norm() ** 2) for part in parts(d, v, rank, sides)]
    x = d.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def cost():
        optimizer.zero_grad()
        outside = zip(shares[1:], parts(x, v, rank, sides)[1:], strict=True)
        value = (x - d).square().sum() + sum(mu * share * part.square().sum() for share, part in outside)
        value.backward()
        return value

    optimizer.step(cost)
    return x.detach()


def held(folder, module, scale=2.0):
    a, b = factors(folder)[module]
    return scale * b.double() @ a.double()


@pytest.mark.parametrize("sides", ["left", "both"])
@pytest.mark.parametrize("full", [False, True], ids=["adapter", "checkpoint"])
def test_every_module_is_the_minimum(sides, full, trio, tmp_path):
    method = CSULoRA(mu=5.0, rank=6, sides=sides)
    report = repair(trio.adapter, method, aligned=trio.aligned, base=trio.base, out=tmp_path / "out", merge=full)
    aligned, base = weights(trio.aligned), weights(trio.base)
    assert report.changed == 8
    for row in report.modules:
        key = f"{row.module}.weight"
        v, old = aligned[key].double() - base[key].double(), held(trio.adapter, row.module)
        new = weights(tmp_path / "out")[key].double() - aligned[key] if full else held(tmp_path / "out", row.module)
        expected = minimised(old, v, 6, sides, 5.0)
        torch.testing.assert_close(new, expected, rtol=0, atol=1e-6 if full else 2e-7)
        assert torch.linalg.norm(expected - old) > 0.2 * old.norm()
        inside = parts(old, v, 6, "left")[0]
        assert row.cosine == pytest.approx(float(inside.norm() / old.norm()), abs=1e-6)
        assert row.null_cosine == pytest.approx((6 / row.shape[0]) ** 0.5)


def test_only_b_changes_and_with_both_sides_the_ranks_double(trio, tmp_path):
    roles = {"aligned": trio.aligned, "base": trio.base}
    repair(trio.adapter, CSULoRA(rank=6), out=tmp_path / "left", **roles)
    repair(trio.adapter, CSULoRA(rank=6, sides="both"), out=tmp_path / "both", **roles)
    old, left, both = (factors(folder) for folder in (trio.adapter, tmp_path / "left", tmp_path / "both"))
    for module, (a, b) in old.items():
        assert torch.equal(a, left[module][0])
        assert not torch.equal(b, left[module][1])
        assert len(both[module][0]) == 2 * len(a)


def test_what_is_aligned_stays_and_what_is_not_shrinks_more_the_more_there_is(trio, tmp_path):
    """`mu` from nothing to everything, and the hard projector as the limit."""
    roles = {"aligned": trio.aligned, "base": trio.base}
    aligned, base = weights(trio.aligned), weights(trio.base)
    last = None
    for mu in (0.5, 5.0, 1e9):
        report = repair(trio.adapter, CSULoRA(mu=mu, rank=4), out=tmp_path / str(mu), **roles)
        lengths = []
        for row in report.modules:
            v = aligned[f"{row.module}.weight"] - base[f"{row.module}.weight"]
            before, after = (parts(held(f, row.module), v, 4, "left") for f in (trio.adapter, tmp_path / str(mu)))
            torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-6)
            lengths.append(float(after[1].norm() / before[1].norm()))
        assert last is None or all(a < b for a, b in zip(lengths, last, strict=True))
        last = lengths
    assert max(last) < 1e-5


def test_a_whole_basis_has_nothing_outside(trio, tmp_path):
    """v_proj has 16 outputs: to the bit, not to rounding."""
    report = repair(trio.adapter, CSULoRA(rank=16), aligned=trio.aligned, base=trio.base, out=tmp_path / "out")
    assert {row.module.split(".")[-1] for row in report.modules if not row.edited} == {"v_proj"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mu": -1.0}, "`mu` of CSULoRA must be >= 0"),
        ({"mu": float("inf")}, "`mu` of CSULoRA"),
        ({"rank": 0}, "`rank` of CSULoRA must be an integer >= 1"),
        ({"sides": "right"}, "left"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ConfigError, match=message):
        CSULoRA(**parameters)
