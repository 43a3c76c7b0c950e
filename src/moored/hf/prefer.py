# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a causal model on preferences with TRL's `DPOTrainer`, defended or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer

from moored.data.chat import IGNORED, encode
from moored.data.schema import Preference, Row
from moored.defenses.base import Defense
from moored.errors import DataError, NeedsError, require
from moored.hf.loaders import load_model, load_tokenizer
from moored.hf.train import (
    ATTENTION,
    Follower,
    Training,
    TrainingReport,
    arguments,
    protected,
    run,
    save,
    trainable,
)
from moored.memory import forget_peak
from moored.progress import Progress

REFERENCE = "ref"
"""TRL's adapter that stays what the trained one was at its start."""
_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""What TRL's collator of preferences reads."""


def prefer(
    model: str | Path,
    pairs: Sequence[Preference],
    out: Path,
    *,
    training: Training,
    beta: float = 0.1,
    defenses: Sequence[Defense] = (),
    roles: Mapping[str, Sequence[Preference | Row] | str | Path] | None = None,
    merge: bool = False,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train on preferences and save to `out`, as `fine_tune` does with rows.

    The reference is the model that training starts from. Rows are rendered as `encode` does, so a tuned model reads
    the prompts that it was trained on.

    Paper:
        Rafailov et al.: Direct Preference Optimization, NeurIPS 2023, arXiv 2305.18290.

    Args:
        model: where the weights are; see `resolve_model`.
        pairs: at least one.
        out: folder for the result.
        training: how; `pack` makes no difference.
        beta: how much the model is kept near the reference, > 0. Paper: 0.1 to 0.5.
        defenses: see `protect`.
        roles: preferences for the defences by role, see `moored.data.preferences`; for a role that is a model, its
            folder or hub id.
        merge: see `fine_tune`.
        progress: see `fine_tune`.

    Returns:
        The report; its log has `rewards/margins`, the preferred answers' advantage over the reference's.

    Raises:
        NeedsError: TRL is missing, or a role has rows in place of preferences.
        DataError: there are no preferences, or one cannot be rendered.
    """
    require(beta > 0, "prefer", "beta", "> 0", beta)
    forget_peak()
    tokenizer = load_tokenizer(model)
    torch.manual_seed(training.seed)
    follower = Follower(progress)
    trainer = _trainer(model, tokenizer, pairs, out, training, beta, follower)
    trained: Any = trainer.model
    given = {name: _role(tokenizer, name, data, training) for name, data in (roles or {}).items()}
    trainer = protected(trainer, defenses, given, rows=len(pairs), training=training)
    report = run(trainer, out, follower, rows=len(pairs), packed=False)
    if REFERENCE in getattr(trained, "peft_config", {}):
        trained.delete_adapter(REFERENCE)  # it is the start, and would be saved beside the adapter
    save(trainer, trained, tokenizer, model, out, merge=merge, full=training.full)
    return report


def encoded(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Preference], max_length: int) -> datasets.Dataset:
    """Preferences as TRL's collator reads them.

    Args:
        tokenizer: see `moored.data.chat.render`.
        pairs: at least one.
        max_length: tokens kept of prompt and answer.

    Raises:
        DataError: there are no preferences, or one cannot be rendered, or its two answers have different prompts.
    """
    if not pairs:
        raise DataError("training on preferences needs at least one; got none")
    columns: dict[str, list[list[int]]] = {name: [] for name in _COLUMNS}
    for number, pair in enumerate(pairs, start=1):
        prompt, chosen = _cut(encode(tokenizer, pair.preferred, max_length=max_length))
        same, rejected = _cut(encode(tokenizer, pair.other, max_length=max_length))
        if prompt != same or pair.preferred.weighted:
            raise DataError(f"the answers of preference {number} must have one prompt, and turns without weights")
        for name, ids in zip(_COLUMNS, (prompt, chosen, rejected), strict=True):
            columns[name].append(ids)
    return datasets.Dataset.from_dict(columns)


def _cut(row: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    """A row's tokens before its answer, and those of the answer."""
    begin = next(at for at, label in enumerate(row["labels"]) if label != IGNORED)
    return row["input_ids"][:begin], row["input_ids"][begin:]


def _role(tokenizer: PreTrainedTokenizerBase, name: str, data: Any, training: Training) -> Any:
    if isinstance(data, str | Path):
        return data
    if not all(isinstance(each, Preference) for each in data):
        raise NeedsError(
            f"`{name}` of a training on preferences must be preferences; see `moored.data.preferences.paired`"
        )
    return encoded(tokenizer, data, training.max_length)


def _trainer(
    model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Preference],
    out: Path,
    training: Training,
    beta: float,
    follower: Follower,
) -> Trainer:
    try:
        from trl import DPOConfig, DPOTrainer
    except ImportError as error:
        raise NeedsError("training on preferences needs TRL: pip install 'moored[trl]'") from error

    class PreferenceTrainer(DPOTrainer):
        """A `DPOTrainer` that takes encoded preferences as they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            if set(_COLUMNS) <= set(dataset.column_names):
                return dataset
            return super()._prepare_dataset(dataset, *args, **kwargs)

    config = DPOConfig(**arguments(out, len(pairs), training), beta=beta, max_length=None, gradient_checkpointing=False)
    start: Any = trainable(model, training)
    trainer = PreferenceTrainer(
        model=start,
        ref_model=load_model(model, dtype="float32", attention=ATTENTION) if training.full else None,
        args=config,
        train_dataset=encoded(tokenizer, pairs, training.max_length),
        processing_class=tokenizer,
        callbacks=[follower],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
