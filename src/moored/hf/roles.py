# SPDX-License-Identifier: Apache-2.0
"""Bring alignment and harmful data into the form that a given trainer trains on, through its own preparation."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import ConcatDataset

from moored.data.chat import encode
from moored.data.load import to_dataset
from moored.data.schema import Row
from moored.errors import ConfigError, DataError, NeedsError
from moored.method import MODELS


def prepare_role(trainer: Any, role: str, data: Any) -> Any:
    """The role's rows as the trainer's own training rows: same tokenising, masking, truncation and packing.

    A role that is a model (`MODELS`) stays the folder or hub id that it is; defences read its weights one by one.

    Args:
        trainer: a built trainer.
        role: the name, for messages.
        data: a list of `Row`, or a dataset in a format that this trainer accepts; a folder or hub id for a model.

    Raises:
        DataError: the role is empty.
        NeedsError: rows of this kind cannot feed this trainer; the message says which format does.
        ConfigError: neither rows nor a dataset; no folder or hub id where a model is wanted.
    """
    if role in MODELS:
        if not isinstance(data, str | Path):
            raise ConfigError(f"`{role}` must be the folder or hub id of a model; got {type(data).__name__}")
        return data
    if isinstance(data, Sequence) and all(isinstance(row, Row) for row in data):
        if not data:
            raise DataError(f"`{role}` has no rows; give at least one")
        return _prepare_rows(trainer, role, list(data))
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ConfigError(f"`{role}` must be a list of Row or a map-style dataset; got {type(data).__name__}")
    if len(data) == 0:
        raise DataError(f"`{role}` has no rows; give at least one")
    return _own_preparation(trainer, role, data)


def joined(rows: Any, more: Any) -> Any:
    """Two prepared datasets as one, the second behind the first, in the columns that both have."""
    if not (isinstance(rows, datasets.Dataset) and isinstance(more, datasets.Dataset)):
        return ConcatDataset([rows, more])
    shared = [column for column in rows.column_names if column in more.column_names]
    return datasets.concatenate_datasets([rows.select_columns(shared), more.select_columns(shared)])


def _prepare_rows(trainer: Any, role: str, rows: list[Row]) -> Any:
    silent = next((i for i, row in enumerate(rows) if not row.answered), None)
    if silent is not None:
        raise DataError(f"row {silent + 1} of `{role}` has no answer; every row needs an assistant turn")
    if "preference" in _flavour(trainer):
        raise NeedsError(
            f"`{role}` for {type(trainer).__name__} must be a dataset of preferences "
            "(prompt, chosen, rejected); rows with a single answer cannot feed it"
        )
    if _flavour(trainer) == "sft":
        if getattr(trainer.args, "assistant_only_loss", False):
            data = datasets.Dataset.from_list([{"messages": list(row.messages)} for row in rows])
        else:
            data = to_dataset(rows)
        return _own_preparation(trainer, role, data)
    if trainer.processing_class is None:
        raise NeedsError(
            f"`{role}` was given as rows, which {type(trainer).__name__} cannot tokenise without `processing_class`; "
            "pass the tokenizer to the trainer or give a tokenised dataset"
        )
    limit = min(getattr(trainer.processing_class, "model_max_length", 1024), 1024)
    return datasets.Dataset.from_list([encode(trainer.processing_class, row, max_length=limit) for row in rows])


def _own_preparation(trainer: Any, role: str, data: Any) -> Any:
    """TRL's `_prepare_dataset` where there is one, else a check that the columns are those of the user rows."""
    if _flavour(trainer) != "plain":
        offered = {
            "dataset": data,
            "processing_class": trainer.processing_class,
            "args": trainer.args,
            "packing": getattr(trainer.args, "packing", False),
            "formatting_func": None,
            "dataset_name": role,
        }
        wanted = inspect.signature(trainer._prepare_dataset).parameters
        return trainer._prepare_dataset(**{name: value for name, value in offered.items() if name in wanted})
    have, want = getattr(data, "column_names", None), getattr(trainer.train_dataset, "column_names", None)
    if have and want and "input_ids" in want and "input_ids" not in have:
        raise NeedsError(
            f"`{role}` must be tokenised like the training rows (columns {', '.join(want)}); it has {', '.join(have)}. "
            "Give a list of Row to have it done"
        )
    return data


def _flavour(trainer: Any) -> str:
    """Which preparation the trainer has (sft, preference or plain), told from what it can do, not from its class."""
    if not hasattr(trainer, "_prepare_dataset"):
        return "plain"
    return "sft" if "packing" in inspect.signature(trainer._prepare_dataset).parameters else "preference"
