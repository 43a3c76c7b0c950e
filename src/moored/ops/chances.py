# SPDX-License-Identifier: Apache-2.0
"""How likely tokens were."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def chances(
    logits: Float[Tensor, "rows vocabulary"], tokens: Int[Tensor, " rows"], k: int
) -> tuple[Float[Tensor, " rows"], Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Log-probabilities [nats] under the model, before temperature and nucleus.

    Args:
        logits: of the next token.
        tokens: those that were taken.
        k: how many of the likeliest to name as well, 0 or more.

    Returns:
        Of the tokens that were taken; the k likeliest tokens, likeliest first; theirs.
    """
    all_chances = logits.double().log_softmax(-1)
    taken = all_chances.gather(-1, tokens[:, None]).squeeze(-1)
    likeliest = all_chances.topk(k, dim=-1)
    return taken, likeliest.indices, likeliest.values
