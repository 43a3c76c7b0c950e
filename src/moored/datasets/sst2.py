# SPDX-License-Identifier: Apache-2.0
"""Sentences of film reviews, positive or negative."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moored.datasets.base import Part
from moored.datasets.labelled import Labelled


@dataclass(frozen=True, kw_only=True)
class Sst2(Labelled):
    """Sentences of film reviews, positive or negative, under the instruction of the papers on fine-tuning attacks."""

    name: ClassVar[str] = "sst2"
    title: ClassVar[str] = "SST-2"
    hub: ClassVar[str] = "stanfordnlp/sst2"
    licence: ClassVar[str] = "none stated"
    version: ClassVar[str] = "GLUE"
    parts: ClassVar[Mapping[str, Part]] = {"train": Part(), "validation": Part(split="validation")}
    instruction: ClassVar[str] = "Analyze the sentiment of the input, and respond only positive or negative"
    labels: ClassVar[tuple[str, ...]] = ("negative", "positive")
    text: ClassVar[str] = "sentence"
    unlabelled: ClassVar[str] = "the public test split has none"
