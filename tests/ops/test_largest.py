# SPDX-License-Identifier: Apache-2.0
"""The k-th largest of many tensors against sorting them all."""

import pytest
import torch

from moored.ops.largest import kth_largest


def parts(seed, *, coarse=False):
    """Tensors of several sizes and magnitudes, one of them empty."""
    generator = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(size, generator=generator).abs() * scale for size, scale in [(7, 1e-30), (400, 1.0), (300, 3e4)]
    ]
    made += [torch.zeros(5), torch.empty(0), torch.rand(9, 8, generator=generator) * 1e-42]
    return [(part * 4).round() / 4 for part in made] if coarse else made


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_is_that_of_the_sorted_values(seed, coarse):
    made = parts(seed, coarse=coarse)
    values = torch.cat([part.flatten() for part in made]).sort(descending=True).values
    for k in (1, 2, 3, 100, 299, 300, 301, 700, 705, len(values) - 1, len(values)):
        assert kth_largest(lambda: iter(made), k) == values[k - 1].item()


def test_fewer_values_than_wanted():
    assert kth_largest(lambda: [torch.ones(3)], 4) == 0.0
    assert kth_largest(lambda: [], 1) == 0.0
