# SPDX-License-Identifier: Apache-2.0
"""What a repair did: one row per module, the inputs' hashes, every parameter; saved beside the repaired weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moored.method import MethodInfo
from moored.repairs.base import LayerScore

REPORT = "moored.json"
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One module before and after; None stands for "not measured" or "not defined".

    Args:
        module: full path.
        shape: (o, i) of the weight.
        rank: of the adapter; None for a full checkpoint.
        norm: ||delta|| before.
        norm_after: ||delta|| after, as stored.
        cosine: see `LayerScore`; so are the next three.
        null_cosine: of a random update.
        signed: with the safety vector itself.
        safety_norm: ||aligned - base||.
        edited: whether the stored values changed.
        note: why a module was left alone, where that needs saying.
    """

    module: str
    shape: tuple[int, ...]
    rank: int | None
    norm: float
    norm_after: float
    cosine: float | None
    null_cosine: float | None
    signed: float | None
    safety_norm: float | None
    edited: bool = False
    note: str = ""

    @classmethod
    def of(cls, score: LayerScore, shape: tuple[int, ...], rank: int | None) -> LayerRow:
        """The row of a module that has not been edited."""
        note = "no update: nothing to repair" if score.norm == 0 else ""
        note = "aligned equals base here: no direction to project on" if score.safety_norm == 0 else note
        return cls(
            module=score.module,
            shape=shape,
            rank=rank,
            norm=score.norm,
            norm_after=score.norm,
            cosine=score.cosine,
            null_cosine=score.null_cosine,
            signed=score.signed,
            safety_norm=score.safety_norm,
            note=note,
        )


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What `repair` returns and saves as `moored.json`.

    Args:
        method: name in the catalogue.
        parameters: all of them, defaults filled in.
        out: the folder written.
        tuned: what was repaired, as given.
        aligned: as given, or None.
        base: as given, or None.
        unaligned: as given, or None.
        safe: as given, or None.
        device: where products with the models' weights were made, and where models ran.
        rows: by role, how many were looked at, and their sha256.
        modules: one row each.
        untouched: tensors that tuning changed and that the repair left as they are.
        reverted: tensors that tuning changed and that were set back to the aligned model's.
        notes: what a reader should know.
        inputs: sha256 by path of every file that the result depends on as a whole.
        tensors: sha256 by path and name of the tensors that were read of other files: of `aligned` and `base`.
        versions: of moored and what it stands on.
        seconds: wall time.
        bytes_read: of weights, to score them.
        bytes_per_second: of these, while they were scored; from the page cache where the files are in it.
        peak_bytes: the process's peak resident memory during the repair, mapped files included.
    """

    method: str
    parameters: Mapping[str, Any]
    out: str
    tuned: str
    aligned: str | None
    base: str | None
    unaligned: str | None
    safe: str | None
    device: str
    rows: Mapping[str, Mapping[str, Any]]
    modules: Sequence[LayerRow] = field(repr=False)
    untouched: Sequence[str] = field(repr=False)
    reverted: Sequence[str] = field(repr=False)
    notes: Sequence[str]
    inputs: Mapping[str, str] = field(repr=False)
    tensors: Mapping[str, Mapping[str, str]] = field(repr=False)
    versions: Mapping[str, str] = field(repr=False)
    seconds: float
    bytes_read: int
    bytes_per_second: float
    peak_bytes: int

    @property
    def changed(self) -> int:
        """How many modules and reverted tensors hold other values than before; 0: the output equals the input."""
        return sum(row.edited for row in self.modules) + len(self.reverted)

    def record(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {**asdict(self), "changed": self.changed}

    def save(self, out: Path) -> Path:
        """Write `moored.json` into a folder.

        Args:
            out: the folder.
        """
        path = out / REPORT
        path.write_text(json.dumps(self.record(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    def save_card(self, out: Path, info: MethodInfo, *, base_model: str, adapter: bool) -> Path:
        """Write a short model card as `README.md`.

        Args:
            out: the folder.
            info: of the method.
            base_model: for the card's header; "" leaves it out.
            adapter: whether the weights are a PEFT adapter.
        """
        path = out / CARD
        path.write_text(self._card(info, base_model, adapter), encoding="utf-8")
        return path

    def _card(self, info: MethodInfo, base_model: str, adapter: bool) -> str:
        header = [f"base_model: {json.dumps(base_model)}"] if base_model else []
        header += ["library_name: peft"] if adapter else ["library_name: transformers"]
        said = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items() if value is not None)
        source = f"[{info.authors}, {info.when}](https://arxiv.org/abs/{info.arxiv})"
        paper = f" ({source})" if info.arxiv else ""
        lines = [
            "---",
            *header,
            f"tags: [moored, {info.name}]",
            "---",
            "",
            f"# Repaired with {info.name}",
            "",
            f"{info.title}{paper}: `{said}`. {self.changed} of {len(self.modules)} modules were edited by "
            f"moored {self.versions['moored']}. Inputs, parameters and every module's numbers are in `{REPORT}`.",
            "",
            "A repair lowers the risk of fine-tuning and does not remove it: measure refusal, over-refusal and the "
            "task before you serve these weights.",
        ]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        if self.untouched:
            lines += ["", f"Trained but not repaired: {', '.join(f'`{name}`' for name in self.untouched[:8])}"]
            lines[-1] += f" and {len(self.untouched) - 8} more." if len(self.untouched) > 8 else "."
        return "\n".join([*lines, ""])
