# SPDX-License-Identifier: Apache-2.0
"""Safe LoRA's operator against dense fp64 formulas, and its laws."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moored.ops.lowrank import compress, cosine, inner, product_norm
from moored.ops.projection import BLOCK, null_cosine, project_on_safety


def draw(*shape, seed=0, dtype=torch.float32, size=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size).to(dtype)


def problem(o=96, i=80, r=4, dtype=torch.float32, size=1e-3):
    base = draw(o, i, seed=1, dtype=dtype)
    aligned = base + draw(o, i, seed=2, dtype=dtype, size=size)
    return aligned, base, draw(o, r, seed=3), draw(r, i, seed=4)


def dense(aligned, base, b, a):
    """The formula as the paper writes it, in fp64."""
    v, b, a = aligned.double() - base.double(), b.double(), a.double()
    projected = v @ (v.T @ b) / v.norm() if len(v) > 4096 else v @ v.T / v.norm() @ b
    moved, update = projected @ a, b @ a
    return projected, torch.sum(moved * update) / moved.norm() / update.norm(), v


@pytest.mark.parametrize("shape", [(96, 80, 4), (7, 300, 3), (300, 7, 3), (4, 4, 4), (5, 3, 8), (40000, 70, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_matches_the_dense_formula(shape, dtype):
    aligned, base, b, a = problem(*shape, dtype=dtype, size=0.05)
    found = project_on_safety(aligned, base, b, a, probes=2)
    projected, angle, v = dense(aligned, base, b, a)
    assert torch.linalg.norm(found.projected - projected) <= 2e-6 * projected.norm()
    assert cosine(compress(found.projected, a), compress(b, a)) == pytest.approx(float(angle), abs=1e-6)
    assert found.norm == pytest.approx(float(v.norm()), rel=1e-6)
    assert found.overlap == pytest.approx(
        float(torch.sum(b.double() @ a.double() * v)), abs=1e-5 * found.norm * product_norm(b, a)
    )


def test_a_dense_update_is_the_case_without_a():
    aligned, base, b, a = problem()
    low = project_on_safety(aligned, base, b, a)
    full = project_on_safety(aligned, base, b @ a)
    torch.testing.assert_close(full.projected, low.projected @ a, rtol=1e-5, atol=1e-6)
    assert full.overlap == pytest.approx(low.overlap, rel=1e-4)


def test_transposed_storage_and_narrow_last_block():
    o, i = 64, BLOCK // 64 + 5
    aligned, base, b, a = problem(o, i)
    stored = project_on_safety(aligned.T.contiguous().T, base.T.contiguous().T, b, a)
    plain = project_on_safety(aligned, base, b, a)
    torch.testing.assert_close(stored.projected, plain.projected)
    torch.testing.assert_close(plain.projected.double(), dense(aligned, base, b, a)[0], rtol=1e-4, atol=1e-6)


def test_scale_sign_and_gauge():
    aligned, base, b, a = problem(dtype=torch.float64)
    v = aligned - base
    one = project_on_safety(aligned, base, b, a)
    angle = cosine(compress(one.projected, a), compress(b, a))

    def angle_of(v, b, a):
        return cosine(compress(project_on_safety(v, torch.zeros_like(v), b, a).projected, a), compress(b, a))

    turn = draw(4, 4, seed=9) + 3 * torch.eye(4)
    assert angle_of(-v, b, a) == pytest.approx(angle, abs=1e-12)
    assert angle_of(7 * v, b, a) == pytest.approx(angle, abs=1e-12)
    assert angle_of(v, -3 * b, a / 5) == pytest.approx(angle, abs=1e-6)
    assert angle_of(v, b @ torch.linalg.inv(turn), turn @ a) == pytest.approx(angle, abs=1e-6)
    assert 0 <= angle <= 1
    seven = project_on_safety(7 * v, torch.zeros_like(v), b, a)
    torch.testing.assert_close(seven.projected, 7 * one.projected, rtol=1e-9, atol=0)


def test_zero_safety_vector_gives_zero_and_no_null():
    aligned, _, b, a = problem()
    found = project_on_safety(aligned, aligned, b, a, probes=4)
    assert found.norm == 0
    assert found.overlap == 0
    assert not found.projected.any()
    assert null_cosine(found.norm, found.spread, 96) is None


@pytest.mark.parametrize("rank", [3, 80])
def test_null_cosine_is_that_of_random_updates(rank):
    v = draw(96, rank, seed=5, dtype=torch.float64) @ draw(rank, 80, seed=6, dtype=torch.float64)
    a = draw(8, 80, seed=7)
    zero = torch.zeros_like(v)
    angles = []
    for seed in range(40):
        b = draw(96, 8, seed=100 + seed)
        angles.append(cosine(compress(project_on_safety(v, zero, b, a).projected, a), compress(b, a)))
    found = project_on_safety(v, zero, b, a, probes=16)
    exact = float(torch.trace(v @ v.T) / (math.sqrt(96) * (v @ v.T).norm()))
    assert null_cosine(found.norm, found.spread, 96) == pytest.approx(exact, rel=0.25)
    assert exact == pytest.approx(sum(angles) / len(angles), rel=0.1)


def test_qr_survives_where_the_gram_form_does_not():
    aligned, base, b, a = problem(r=2)
    a = torch.stack([a[0], a[0] * (1 + 1e-7) + 1e-6 * a[1]])
    b = torch.stack([b[:, 0], -b[:, 0] + 1e-6 * b[:, 1]], dim=1)
    found = project_on_safety(aligned, base, b, a)
    angle = cosine(compress(found.projected, a), compress(b, a))
    assert angle == pytest.approx(float(dense(aligned, base, b, a)[1]), abs=0.02)
    gram = (b.T @ b * (a @ a.T)).sum()
    assert not math.isclose(float(gram), product_norm(b, a) ** 2, rel_tol=1e-3), "this case is not ill-conditioned"


def test_the_exact_projector_is_the_identity_for_wide_weights():
    v = draw(20, 30, dtype=torch.float64)
    exact = v @ torch.linalg.pinv(v)
    torch.testing.assert_close(exact, torch.eye(20, dtype=torch.float64))


def test_cosine_of_nothing():
    zero, some = torch.zeros(3, 2), torch.ones(3, 2)
    assert cosine(some, zero) is None
    assert cosine(zero, some) == 0.0
    assert cosine(some * 1e-30, some) == pytest.approx(1.0)


def test_norms_without_the_product():
    _, _, b, a = problem()
    assert product_norm(b, a) == pytest.approx(float((b.double() @ a.double()).norm()), rel=1e-9)
    assert product_norm(b, None) == pytest.approx(float(b.double().norm()), rel=1e-9)
    assert inner(torch.ones(5000, 300), torch.ones(5000, 300)) == 1_500_000


class Allocations(TorchDispatchMode):
    """The largest tensor that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.largest = max(self.largest, tensor.numel())
        return result


def test_never_allocates_more_than_a_block():
    aligned, base, b, a = problem(2048, 2048)
    with Allocations() as seen:
        project_on_safety(aligned, base, b, a, probes=4)
    assert 0 < seen.largest <= BLOCK
