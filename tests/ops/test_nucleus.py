# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from moored.ops.nucleus import nucleus

LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.3, -4.0, 1.1])
GRID = 40_000


def shares(temperature, top_p):
    """How often each token comes when the uniform number runs through a fine grid."""
    uniform = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    tokens = nucleus(LOGITS.expand(GRID, -1), uniform, temperature=temperature, top_p=top_p)
    return torch.bincount(tokens, minlength=len(LOGITS)) / GRID


def expected(temperature, top_p):
    """The renormalised distribution over the nucleus, by a loop."""
    whole = torch.softmax(LOGITS.double() / temperature, -1).tolist()
    kept, mass = {}, 0.0
    for token in sorted(range(len(whole)), key=lambda i: -whole[i]):
        if mass >= top_p:
            break
        kept[token] = whole[token]
        mass += whole[token]
    return torch.tensor([kept.get(token, 0.0) / mass for token in range(len(whole))])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [0.2, 0.7, 0.95, 1.0])
def test_tokens_come_as_often_as_the_truncated_distribution_says(temperature, top_p):
    torch.testing.assert_close(shares(temperature, top_p), expected(temperature, top_p).float(), atol=2 / GRID, rtol=0)


def test_the_ends_of_the_interval_stay_inside_the_nucleus():
    for number in (0.0, 1.0 - 2**-53):
        token = nucleus(LOGITS[None], torch.tensor([number], dtype=torch.float64), top_p=0.7)
        assert expected(1.0, 0.7)[token] > 0


def test_rows_are_drawn_apart():
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    uniform = torch.tensor([0.9, 0.9])
    one, other = nucleus(logits, uniform)
    assert nucleus(logits[:1], uniform[:1]) == one
    assert nucleus(logits[1:], uniform[1:]) == other
