# SPDX-License-Identifier: Apache-2.0
"""Answers to many prompts, in batches by length; rows that have ended leave the batch.

A loop of its own rather than `model.generate`: it is greedy unless asked otherwise, whatever the model's generation
config says (some ship a repetition penalty that survives `do_sample=False`), short answers do not wait for long ones,
what all prompts begin with is read once, and a drawn answer does not depend on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from moored.data.chat import prompt_ids
from moored.data.schema import Prompts
from moored.errors import DataError, require
from moored.hf.continuation import Choose, Continuation
from moored.hf.drawing import Draw, chosen, draws
from moored.hf.hooks import in_evaluation, own_model
from moored.progress import Found, Progress
from moored.sampling import Sampling
from moored.serving import Serving


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    again: int = 0,
    serving: Serving | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    found: Found | None = None,
) -> list[str]:
    """Answers, one per prompt, in the order of the prompts; greedy unless `sampling` is given.

    Prompts are batched by length, longest first, and padded on the left; what all prompts of a batch begin with (a
    system turn, an instruction) is read once. An answer ends at an end token of the model or of the tokenizer. It does
    not depend on the other prompts of its batch but for rounding: nearly equal logits can swap, above all in bf16.

    Args:
        model: a causal language model, plain or with a PEFT adapter, in any dtype, on any one device. Left as it was:
            the train or eval mode of every module is restored.
        tokenizer: see `moored.data.chat.render`; not changed.
        prompts: chats that end with a user turn.
        max_new_tokens: tokens per answer, at least 1.
        sampling: how to draw answers; None takes the likeliest token each time.
        again: how often every prompt was asked before: what is drawn now is what comes next.
        serving: what the model must be served with (`load_serving`); it is added to every prompt here, nowhere else.
        batch_size: rows at a time, at least 1; lower it if memory runs out.
        progress: called as `progress(done, total, "generate")` whenever answers are finished.
        found: called with each answer as soon as it is finished, in another order than that of the prompts.

    Returns:
        The texts, without special tokens and outer whitespace; "" where the model ends at once.

    Raises:
        ConfigError: `max_new_tokens` or `batch_size` is below 1.
        DataError: a prompt is empty, or does not fit the model's positions together with its answer.
        NotYetSupported: the model has no key-value cache.
    """
    ids = [prompt_ids(tokenizer, serving.apply(prompt) if serving else prompt) for prompt in prompts]
    return continued(
        model,
        tokenizer,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        again=again,
        batch_size=batch_size,
        progress=progress,
        found=found,
    )


def continued(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    again: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
    found: Found | None = None,
) -> list[str]:
    """As `generate`, from prompts that are rendered already.

    Args:
        model: see `generate`.
        tokenizer: see `generate`.
        ids: the tokens of each prompt.
        max_new_tokens: tokens per answer, at least 1.
        sampling: see `generate`.
        again: see `generate`.
        batch_size: rows at a time, at least 1.
        progress: see `generate`.
        found: see `generate`.

    Raises:
        ConfigError: `max_new_tokens` or `batch_size` is below 1.
        DataError: a prompt is empty, or does not fit the model's positions together with its answer.
        NotYetSupported: the model has no key-value cache.
    """
    require(max_new_tokens >= 1, "generate", "max_new_tokens", ">= 1", max_new_tokens)
    require(batch_size >= 1, "generate", "batch_size", ">= 1", batch_size)
    _check_fit(model, ids, max_new_tokens)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    ends = end_tokens(model, tokenizer)
    drawn = draws(ids, sampling, again)
    answers = [""] * len(ids)
    done = 0
    with answering(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            choose = _choosing([drawn[i] for i in batch])
            for row, tokens in _ended(model, [ids[i] for i in batch], ends, max_new_tokens, choose):
                answers[batch[row]] = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
                done += 1
                if found is not None:
                    found(batch[row], answers[batch[row]])
                if progress is not None:
                    progress(done, len(order), "generate")
    return answers


def _choosing(drawn: Sequence[Draw | None]) -> Choose[int]:
    """The next token of rows by their number."""
    return lambda logits, rows: chosen(logits, [drawn[row] for row in rows])


def _ended(
    model: nn.Module, prompts: Sequence[Sequence[int]], ends: frozenset[int], limit: int, choose: Choose[int]
) -> Iterator[tuple[int, list[int]]]:
    """Each row's number and new tokens, as soon as it ends."""
    answers: list[list[int]] = [[] for _ in prompts]
    continuation = Continuation(model, prompts, range(len(prompts)), limit)
    for _ in range(limit):
        over = []
        for row, new in continuation.step(choose):
            if new in ends:
                over.append(row)
                yield row, answers[row]
            else:
                answers[row].append(new)
        continuation.drop(over)
        if not continuation.live:
            return
    for row in continuation.live:
        yield row, answers[row]


def _check_fit(model: nn.Module, ids: Sequence[Sequence[int]], new: int) -> None:
    """Raise unless every prompt has a token and fits the model's positions with its answer."""
    positions = positions_of(model)
    for number, prompt in enumerate(ids, start=1):
        if not prompt:
            raise DataError(f"prompt {number} is empty")
        if positions is not None and len(prompt) + new > positions:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens; with `max_new_tokens`={new} that is more than the model's "
                f"{positions} positions: shorten the prompt or lower `max_new_tokens`"
            )


def positions_of(model: nn.Module) -> int | None:
    """How many tokens a prompt and its answer can have; None if the model does not say.

    Args:
        model: whose config is read.
    """
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


def end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end an answer: chat models often name several, and tuned ones not the tokenizer's.

    Args:
        model: whose generation config is read.
        tokenizer: whose end token counts too.
    """
    config = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return frozenset(end for end in (*several, tokenizer.eos_token_id) if end is not None)


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """The model ready to answer inside: in evaluation mode, and sparing where only last tokens are read.

    Args:
        model: left as it was.
    """
    with in_evaluation(model), _contiguous_head(model):
        yield


@contextmanager
def _contiguous_head(model: nn.Module) -> Iterator[None]:
    """Copies the hidden states before the output layer inside.

    They are a slice, each row's last token, and PyTorch multiplies a slice by a frozen weight as a batch of products,
    with a copy of the vocabulary's matrix for every row: half of the time to read a prompt.
    """
    head = own_model(model).get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()
