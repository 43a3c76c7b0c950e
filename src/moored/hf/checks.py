# SPDX-License-Identifier: Apache-2.0
"""Refuse, with the reason, every place where a defence would be silently off or wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import IterableDataset

from moored.defenses.base import Defense
from moored.errors import ConfigError, NeedsError, NeverSupported, NotYetSupported
from moored.hf.hooks import own_model, uses_reentrant_checkpointing
from moored.hf.packing import keeps_rows_apart
from moored.method import MODELS


def check(trainer: Any, defenses: Sequence[Defense], roles: Sequence[str]) -> None:
    """All checks that can be made before training.

    Raises:
        ConfigError: nothing to apply, applied twice, or a role that no defence reads.
        NeedsError: a role is missing.
        NeverSupported, NotYetSupported: the trainer is set up so that a defence could not act, or not as configured.
    """
    if not defenses:
        raise ConfigError("protect() needs at least one defence, for example protect(trainer, Lisa(), alignment=rows)")
    names = [d.info.name for d in defenses]
    if twice := {n for n in names if names.count(n) > 1}:
        raise ConfigError(f"{', '.join(sorted(twice))} is given twice; one run can hold a defence once")
    for defense in defenses:
        for need in sorted(defense.needs()):
            if need not in roles:
                kind, value = ("model", "folder_or_hub_id") if need in MODELS else ("data", "rows")
                raise NeedsError(
                    f"{type(defense).__name__} needs `{need}` {kind}; pass protect(trainer, ..., {need}={value})"
                )
    wanted = {need for d in defenses for need in d.info.needs}
    if unread := [role for role in roles if role not in wanted]:
        raise ConfigError(f"`{unread[0]}` was given, but none of {', '.join(names)} reads it; leave it out")
    touched = frozenset().union(*(d.touches for d in defenses))
    for look in CHECKS:
        look(trainer, touched)
    _no_packing_of_rows_told_apart(trainer, defenses)
    _answers_to_read(trainer, defenses)
    _one_answer_to_a_row(trainer, defenses)
    _one_way_to_serve(defenses)


def _no_deepspeed(trainer: Any, touched: frozenset[str]) -> None:
    if trainer.is_deepspeed_enabled:
        raise NeverSupported(
            "DeepSpeed steps the optimizer inside backward, so changes to gradients would be lost without a word; "
            "train with DDP (torchrun) instead"
        )


def _no_data_parallel(trainer: Any, touched: frozenset[str]) -> None:
    if trainer.args.n_gpu > 1:
        raise NeverSupported(
            f"torch DataParallel (n_gpu={trainer.args.n_gpu} in one process) copies the model every step, so hooks and "
            "anchors would sit on the wrong copy; start one process per GPU with torchrun"
        )


def _no_sharding_but_fsdp2(trainer: Any, touched: frozenset[str]) -> None:
    if trainer.is_fsdp_enabled:
        raise NotYetSupported(
            "FSDP through accelerate is not tested yet with defences; let transformers shard the model "
            "(from_pretrained(..., distributed_config=DistributedConfig(fsdp_size=N))), or train with DDP (torchrun)"
        )
    if getattr(trainer, "is_distributed_loading_by_transformers", False):
        layout = trainer.model.config.distributed_config
        other = [n for n in ("tp_size", "pp_size", "ep_size", "dp_replicate_size") if (getattr(layout, n, 1) or 1) > 1]
        if other:
            raise NotYetSupported(
                f"{other[0]}={getattr(layout, other[0])} is not tested yet with defences; shard with `fsdp_size` alone "
                "or train with DDP (torchrun)"
            )


def _no_layerwise_optimizer(trainer: Any, touched: frozenset[str]) -> None:
    optim = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if "layerwise" in optim:
        raise NeverSupported(
            f"optim={optim!r} steps inside backward, before a defence sees the gradients; use another optimizer"
        )


def _no_fp16(trainer: Any, touched: frozenset[str]) -> None:
    if trainer.args.fp16 and "gradients" in touched:
        raise NotYetSupported("fp16 keeps gradients scaled by a loss scale that this defence ignores; use bf16=True")


def _no_online_generation(trainer: Any, touched: frozenset[str]) -> None:
    if hasattr(trainer, "_generate_and_score_completions") and touched != {"rewards"}:
        raise NotYetSupported(
            f"{type(trainer).__name__} generates inside `_prepare_inputs`, so a second pass would consume another "
            "batch; defences other than those of rewards work on Trainer, SFTTrainer and DPOTrainer"
        )


def _rewards_to_change(trainer: Any, touched: frozenset[str]) -> None:
    if "rewards" in touched and not (hasattr(trainer, "reward_funcs") and hasattr(trainer, "scale_rewards")):
        raise NotYetSupported(
            f"this defence changes rewards, and {type(trainer).__name__} has none that it knows; use GRPOTrainer"
        )


def _no_reentrant_checkpointing(trainer: Any, touched: frozenset[str]) -> None:
    if "activations" not in touched:
        return
    args = trainer.args
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        if (getattr(args, name, None) or {}).get("use_reentrant"):
            raise NeverSupported(
                "use_reentrant=True hides activations from autograd, so the gradient with respect to them is wrong; "
                f'set {name}={{"use_reentrant": False}}'
            )
    if uses_reentrant_checkpointing(trainer.model):
        raise NeverSupported(
            "the model was switched to use_reentrant=True checkpointing, which hides activations from autograd; call "
            'model.gradient_checkpointing_enable({"use_reentrant": False})'
        )


def _no_freezing_across_processes(trainer: Any, touched: frozenset[str]) -> None:
    if trainer.args.world_size > 1 and "frozen" in touched:
        raise NotYetSupported(
            "this defence freezes weights after DDP has counted them, and DDP waits for the gradient of every weight "
            "that it counted; train in one process"
        )


def _no_stream_under_a_plan(trainer: Any, touched: frozenset[str]) -> None:
    if "batches" not in touched:
        return
    if isinstance(trainer.train_dataset, IterableDataset) or not hasattr(trainer.train_dataset, "__len__"):
        raise NotYetSupported(
            "a streamed train_dataset has no length, so its rows cannot be planned with the alignment rows; "
            "load it as a map-style dataset"
        )
    strategy = getattr(trainer.args, "train_sampling_strategy", "random")
    if str(getattr(strategy, "value", strategy)) != "random":
        raise NotYetSupported(
            f"train_sampling_strategy={strategy!r} would be bypassed by the batch plan; set it to 'random'"
        )
    if trainer.args.auto_find_batch_size:
        raise NotYetSupported("auto_find_batch_size changes the batch plan in mid-run; set the batch size by hand")


def _no_packing_of_rows_told_apart(trainer: Any, defenses: Sequence[Defense]) -> None:
    packs = [name for name in ("packing", "padding_free") if getattr(trainer.args, name, False)]
    for defense in defenses:
        if packs and defense.tells_rows_apart():
            raise NotYetSupported(
                f"{type(defense).__name__} with {defense.parameters()} treats every row by itself, and {packs[0]}=True "
                f"puts several rows into one line; set {packs[0]}=False"
            )


def _no_lines_that_mix_rows(trainer: Any, touched: frozenset[str]) -> None:
    # Flash attention is told where rows begin by TRL itself.
    if not getattr(trainer, "padding_free", False) or "flash" in str(trainer.model.config._attn_implementation):
        return
    if not keeps_rows_apart(trainer.model):
        raise NotYetSupported(
            f"padding_free=True (bfd packing sets it) puts several rows into one line, and in "
            f"{type(own_model(trainer.model)).__name__} they would see each other; set padding_free=False and "
            "packing=False"
        )


def _answers_to_read(trainer: Any, defenses: Sequence[Defense]) -> None:
    """Defences that read the logits of answer tokens need rows with one answer, and a loss made of those logits."""
    readers = [type(d).__name__ for d in defenses if "answers" in d.looks_at()]
    if not readers:
        return
    if getattr(trainer.args, "use_liger_kernel", False):
        raise NotYetSupported(f"use_liger_kernel=True hides the hidden states that {readers[0]} reads; set it to False")


def _one_answer_to_a_row(trainer: Any, defenses: Sequence[Defense]) -> None:
    if not _trains_on_pairs(trainer):
        return
    for reason in map(one_answer_needed, defenses):
        if reason:
            raise NotYetSupported(
                f"{reason}, and {type(trainer).__name__} trains on pairs of answers; use it with Trainer or SFTTrainer"
            )


def one_answer_needed(defense: Defense) -> str:
    """Why a defence, as it is configured, cannot act on a training on preferences (DPO); "" if it can.

    Args:
        defense: one of those that act: of a defence made of others, its parts.
    """
    name = type(defense).__name__
    if "answers" in defense.looks_at():
        return f"{name} reads the answer tokens of rows with one answer"
    if type(defense).dress is not Defense.dress and defense.needs():
        return f"{name} changes the text of rows with one answer"
    return ""


def _trains_on_pairs(trainer: Any) -> bool:
    return hasattr(trainer, "_prepare_dataset") and not hasattr(trainer.args, "completion_only_loss")


def _one_way_to_serve(defenses: Sequence[Defense]) -> None:
    servers = [type(d).__name__ for d in defenses if d.serving() is not None]
    if len(servers) > 1:
        raise NotYetSupported(
            f"{' and '.join(servers)} both say what every request must begin with, and none was trained behind the "
            "other's words; keep one of them"
        )


CHECKS: tuple[Callable[[Any, frozenset[str]], None], ...] = (
    _no_deepspeed,
    _no_data_parallel,
    _no_sharding_but_fsdp2,
    _no_layerwise_optimizer,
    _no_fp16,
    _no_online_generation,
    _rewards_to_change,
    _no_reentrant_checkpointing,
    _no_freezing_across_processes,
    _no_stream_under_a_plan,
    _no_lines_that_mix_rows,
)
