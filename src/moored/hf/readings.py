# SPDX-License-Identifier: Apache-2.0
"""What can be read from a model on given rows, a batch at a time: logits of answers, hidden states of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moored.data.chat import IGNORED, AnswerCollator, Encoded
from moored.hf.hooks import body, forward_takes, in_evaluation

TOKENS = 1024
"""In a batch, padding included: at a vocabulary of 128 000 the logits of all of them in fp32 are 0.5 GiB."""

Batch = Mapping[str, Int[Tensor, "rows length"]]


def batches(rows: Sequence[Encoded], pad_token_id: int) -> Iterator[tuple[list[int], Batch]]:
    """Rows of about one length together, with their numbers; each batch has at most `TOKENS` tokens, or one row.

    Args:
        rows: what `encode` returns.
        pad_token_id: see `AnswerCollator`.
    """
    collate = AnswerCollator(pad_token_id)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]), reverse=True)
    while order:
        size = max(1, TOKENS // len(rows[order[0]]["input_ids"]))
        chosen, order = order[:size], order[size:]
        yield chosen, collate([rows[i] for i in chosen])


@torch.no_grad()
def answer_logits(model: Any, batch: Batch) -> tuple[Float[Tensor, "answers vocabulary"], Int[Tensor, " answers"]]:
    """The logits from which a batch's answer tokens are foretold, row by row, and those tokens.

    Args:
        model: a causal language model; read in evaluation mode, left as it was.
        batch: of `batches`.
    """
    ids, mask, labels = (_on(model, batch[name]) for name in ("input_ids", "attention_mask", "labels"))
    targets = labels[:, 1:]
    learnt = targets != IGNORED
    kept = learnt.any(dim=0).nonzero().flatten()
    sparing = forward_takes(model, "logits_to_keep")
    with in_evaluation(model):
        out = model(
            input_ids=ids, attention_mask=mask, use_cache=False, **({"logits_to_keep": kept} if sparing else {})
        )
    logits = out.logits if sparing else out.logits[:, kept]
    return logits[learnt[:, kept]], targets[learnt]


@torch.no_grad()
def hidden_states(model: Any, batch: Batch) -> list[Float[Tensor, "tokens width"]]:
    """The hidden states of a batch's tokens, row by row, at every depth; the last ones are behind the final norm.

    Args:
        model: see `answer_logits`.
        batch: of `batches`; its labels are not looked at.
    """
    ids, mask = (_on(model, batch[name]) for name in ("input_ids", "attention_mask"))
    with in_evaluation(model):
        out = body(model)(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    return [states[mask.bool()] for states in out.hidden_states]


def answers_by_row(found: Tensor, batch: Batch) -> list[Tensor]:
    """What was found of the answer tokens of a batch (`answer_logits`), by row.

    Args:
        found: answer tokens first, row by row.
        batch: of `batches`.
    """
    return by_row(found, (batch["labels"][:, 1:] != IGNORED).sum(dim=1).tolist())


def by_row(found: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """What was found of all tokens of a batch, by row.

    Args:
        found: tokens first, row by row.
        counts: of each row's tokens.
    """
    return list(found.split(list(counts)))


def _on(model: Any, tensor: Tensor) -> Tensor:
    return tensor.to(next(model.parameters()).device)
