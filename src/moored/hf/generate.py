# SPDX-License-Identifier: Apache-2.0
"""Answers to many prompts, in batches by length; rows that have ended leave the batch.

A loop of its own rather than `model.generate`: it is greedy unless asked otherwise, whatever the model's generation
config says (some ship a repetition penalty that survives `do_sample=False`), short answers do not wait for long ones,
what all prompts begin with is read once, and a drawn answer does not depend on what else is in its batch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedTokenizerBase

from moored.data.chat import prompt_ids
from moored.data.schema import Prompts
from moored.errors import DataError, NotYetSupported, require
from moored.hf.hooks import forward_takes, in_evaluation, own_model
from moored.ops.nucleus import nucleus
from moored.progress import Found, Progress
from moored.randomness import named_stream
from moored.sampling import Sampling
from moored.serving import Serving

_COMPACT_BELOW = 0.8
"""The batch is cut to its live rows when they are at most this share of it: a cut copies the cache."""

Choose = Callable[[Float[Tensor, "rows vocabulary"], Sequence[int]], Int[Tensor, " rows"]]
"""The next token of each row, from the logits and the rows' numbers in their batch."""


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
    ends = _end_tokens(model, tokenizer)
    streams = _streams(ids, sampling, again) if sampling else []
    answers = [""] * len(ids)
    done = 0
    with in_evaluation(model), _contiguous_head(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            choose = _drawing(sampling, [streams[i] for i in chosen]) if sampling else _likeliest
            for row, tokens in _ended(model, [ids[i] for i in chosen], ends, max_new_tokens, choose):
                answers[chosen[row]] = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
                done += 1
                if found is not None:
                    found(chosen[row], answers[chosen[row]])
                if progress is not None:
                    progress(done, len(order), "generate")
    return answers


def _likeliest(logits: Float[Tensor, "rows vocabulary"], _rows: Sequence[int]) -> Int[Tensor, " rows"]:
    return logits.argmax(-1)


def _drawing(sampling: Sampling, streams: Sequence[torch.Generator]) -> Choose:
    """Draws the next token of each row from the row's own stream."""

    def choose(logits: Float[Tensor, "rows vocabulary"], rows: Sequence[int]) -> Int[Tensor, " rows"]:
        uniform = torch.stack([torch.rand((), generator=streams[row], dtype=torch.float64) for row in rows])
        uniform = uniform.to(logits.device)
        return nucleus(logits, uniform, temperature=sampling.temperature, top_p=sampling.top_p)

    return choose


def _streams(ids: Sequence[Sequence[int]], sampling: Sampling, again: int) -> list[torch.Generator]:
    """A random stream per prompt, named after it; a prompt that is asked again gets another one."""
    asked: Counter[tuple[int, ...]] = Counter()
    streams = []
    for prompt in map(tuple, ids):
        streams.append(named_stream(f"{prompt} {again + asked[prompt]}", sampling.seed))
        asked[prompt] += 1
    return streams


def _ended(
    model: nn.Module, prompts: Sequence[Sequence[int]], ends: frozenset[int], limit: int, choose: Choose
) -> Iterator[tuple[int, list[int]]]:
    """Each row's number and new tokens, as soon as it ends."""
    device = next(model.parameters()).device
    shared = _shared_prefix(model, prompts, limit)
    ids, mask = _padded(prompts, shared, device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    cache = _prefix_cache(model, prompts[0][:shared], len(prompts), device)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    live = set(rows)
    for _ in range(limit):
        logits, cache = _forward(model, ids, mask, positions, cache)
        token = choose(logits, rows)
        for row, new in zip(rows, token.tolist(), strict=True):
            if row in live and new in ends:
                live.remove(row)
                yield row, answers[row]
            elif row in live:
                answers[row].append(new)
        if not live:
            return
        positions = positions[:, -1:] + 1
        if len(live) <= _COMPACT_BELOW * len(rows):
            kept = [i for i, row in enumerate(rows) if row in live]
            rows = [rows[i] for i in kept]
            index = torch.tensor(kept, device=device)
            cache.batch_select_indices(index)
            token, mask, positions = token[index], mask[index], positions[index]
        ids = token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
    for row in sorted(live):
        yield row, answers[row]


def _forward(
    model: nn.Module,
    ids: Int[Tensor, "rows new"],
    mask: Int[Tensor, "rows length"],
    positions: Int[Tensor, "rows new"],
    cache: Cache | None,
) -> tuple[Float[Tensor, "rows vocabulary"], Cache]:
    """The logits behind each row's last token, and the cache with the new tokens in it."""
    # Without it, the logits of all prompt tokens are kept: rows x length x vocabulary.
    sparing = forward_takes(model, "logits_to_keep")
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **({"logits_to_keep": 1} if sparing else {}),
    )
    if not isinstance(getattr(out, "past_key_values", None), Cache):
        kind = type(own_model(model)).__name__
        raise NotYetSupported(f"generation needs a model with a key-value cache; {kind} returns none")
    return out.logits[:, -1], out.past_key_values


def _shared_prefix(model: nn.Module, prompts: Sequence[Sequence[int]], limit: int) -> int:
    """How many leading tokens all rows share and need only be read once; each row keeps a token of its own.

    The padding then stands between the prefix and the rest. Full attention does not see it, but a sliding window or a
    recurrent layer would, so those read every prompt whole.
    """
    config = getattr(model, "config", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    longest = max(map(len, prompts))
    if len(prompts) == 1 or kinds - {"full_attention", "sliding_attention"}:
        return 0
    if window is not None and longest + limit > window:
        return 0
    return len(os.path.commonprefix([list(prompt[:-1]) for prompt in prompts]))


def _prefix_cache(model: nn.Module, prefix: Sequence[int], rows: int, device: torch.device) -> Cache | None:
    """The cache of a prefix, for each of the rows; None without a prefix."""
    if not prefix:
        return None
    ids = torch.tensor([list(prefix)], device=device)
    positions = torch.arange(len(prefix), device=device)[None]
    _, cache = _forward(model, ids, torch.ones_like(ids), positions, None)
    cache.batch_repeat_interleave(rows)
    return cache


def _padded(
    prompts: Sequence[Sequence[int]], shared: int, device: torch.device
) -> tuple[Int[Tensor, "rows new"], Int[Tensor, "rows length"]]:
    """What stands behind the shared prefix, padded on its left, and the mask of the whole.

    What stands under the mask is never read: any id pads.
    """
    length = max(map(len, prompts))
    gaps = [length - len(prompt) for prompt in prompts]
    ids = [[0] * gap + list(prompt[shared:]) for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[1] * shared + [0] * gap + [1] * (length - gap - shared) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _check_fit(model: nn.Module, ids: Sequence[Sequence[int]], new: int) -> None:
    """Raise unless every prompt has a token and fits the model's positions with its answer."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for number, prompt in enumerate(ids, start=1):
        if not prompt:
            raise DataError(f"prompt {number} is empty")
        if positions is not None and len(prompt) + new > positions:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens; with `max_new_tokens`={new} that is more than the model's "
                f"{positions} positions: shorten the prompt or lower `max_new_tokens`"
            )


def _end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end an answer: chat models often name several, and tuned ones not the tokenizer's."""
    config = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return frozenset(end for end in (*several, tokenizer.eos_token_id) if end is not None)


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
