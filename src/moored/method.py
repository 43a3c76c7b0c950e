# SPDX-License-Identifier: Apache-2.0
"""What every published method says about itself: paper, stage, needs, fidelity, cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

Stage = Literal["alignment", "fine-tuning", "post-fine-tuning"]
Fidelity = Literal["paper", "simplified", "variant"]


class Need(StrEnum):
    """A role that a method cannot work without."""

    ALIGNMENT = "alignment"
    """Harmful prompts with safe answers."""
    HARMFUL = "harmful"
    """Harmful prompts with harmful answers."""
    BASE = "base"
    """The model before alignment."""
    ALIGNED = "aligned"
    """The aligned model: the start of the user's fine-tuning."""
    UNALIGNED = "unaligned"
    """The aligned model after tuning on unsafe rows: an adapter on it, or a full model."""
    SAFE = "safe"
    """The aligned model after tuning on safe rows: an adapter on it, or a full model."""
    CALIBRATION = "calibration"
    """Prompts that the method reads activations on."""


MODELS = frozenset({Need.BASE, Need.ALIGNED, Need.UNALIGNED, Need.SAFE})
"""Roles that are models, given as a folder or hub id; the others are rows."""


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """One published method.

    Args:
        name: the name in the catalogue, snake case.
        title: the paper's title.
        authors: first author "et al.".
        arxiv: arXiv id, "" for a baseline without a paper.
        venue: where it appeared.
        year: of that venue.
        stage: which of the three stages the method defends.
        needs: roles without which it refuses to start.
        fidelity: "paper" only when an oracle test written from the equations backs it.
        differs: what differs from the paper; "" means nothing does.
        null: parameters at which the method does nothing, bit for bit.
        cost: passes per optimizer step and extra memory, for `moored list`.
    """

    name: str
    title: str
    authors: str
    arxiv: str
    venue: str
    year: int
    stage: Stage
    needs: frozenset[Need] = frozenset()
    fidelity: Fidelity
    differs: str = ""
    null: Mapping[str, Any] = field(default_factory=dict)
    cost: str = ""

    @property
    def when(self) -> str:
        """Venue and year."""
        return self.venue if str(self.year) in self.venue else f"{self.venue} {self.year}".strip()


@runtime_checkable
class Published(Protocol):
    """Anything that carries a `MethodInfo`."""

    info: ClassVar[MethodInfo]


def citation(*methods: Published) -> str:
    """BibTeX for exactly the methods given; baselines without a paper are left out.

    Args:
        methods: method objects or classes.
    """
    entries = {}
    for method in methods:
        info = method.info
        if info.arxiv:
            entries[info.name] = (
                f"@article{{{info.name}{info.year},\n"
                f"  title  = {{{info.title}}},\n"
                f"  author = {{{info.authors.replace(' et al.', ' and others')}}},\n"
                f"  year   = {{{info.year}}},\n"
                f"  note   = {{{info.when}}},\n"
                f"  eprint = {{{info.arxiv}}},\n"
                f"  archivePrefix = {{arXiv}}\n}}"
            )
    return "\n\n".join(entries.values())
