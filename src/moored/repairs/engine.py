# SPDX-License-Identifier: Apache-2.0
"""`repair`: read a tuned adapter or checkpoint layer by layer, edit it, write a new folder.

Inputs are never written to. The output appears under its name only when it is complete; an exception, Ctrl-C or a full
disk leaves nothing behind.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moored import __version__
from moored.data.load import load_rows
from moored.data.schema import Row, Source, fingerprint
from moored.errors import CheckpointError, ConfigError, NeedsError, NeverSupported
from moored.hf.adapters import CONFIG, grown
from moored.hf.checkpoint import Checkpoint, copy_with, core, rewrite, sha256, weights_of
from moored.memory import forget_peak, peak_bytes
from moored.method import MODELS, Need
from moored.repairs.base import Delta, Layer, LayerScore, Repair
from moored.repairs.lab import Lab
from moored.repairs.report import LayerRow, RepairReport
from moored.repairs.tuned import MergedAdapter, Stored, Tuned, TunedAdapter, TunedModel, open_tuned

COARSE = 0.05
"""Relative error of a stored update above which its row says so."""

Rows = str | Path | Sequence[Row]
"""Rows, or where they are."""
Progress = Callable[[int, int, str], None]


def repair(
    tuned: str | Path,
    method: Repair,
    *,
    aligned: str | Path | None = None,
    base: str | Path | None = None,
    unaligned: str | Path | None = None,
    safe: str | Path | None = None,
    harmful: Rows | None = None,
    alignment: Rows | None = None,
    calibration: Rows | None = None,
    out: str | Path,
    merge: bool = False,
    revert: bool = False,
    progress: Progress | None = None,
) -> RepairReport:
    """Repair a tuned adapter or checkpoint into a new folder.

    Args:
        tuned: folder of a PEFT LoRA adapter or of a full model, or a hub id.
        method: for example `SafeLoRA()`.
        aligned: the model that tuning started from: folder or hub id.
        base: the same model before alignment.
        unaligned: the aligned model after tuning on unsafe rows: an adapter on it or a full model.
        safe: the aligned model after tuning on safe rows: an adapter on it or a full model.
        harmful: harmful prompts with harmful answers: rows, or an address that `load_rows` takes.
        alignment: harmful prompts with safe answers, likewise.
        calibration: rows of the user's task, likewise.
        out: the folder to write; must not exist. Gets the weights, `moored.json` and a model card.
        merge: write an adapter as a full checkpoint in the aligned model's type and shards; needs `aligned`.
        revert: set trained tensors that the repair does not edit (`modules_to_save`, biases, norms, embeddings) back
            to what they are in `aligned`.
        progress: called with (layers done, layers in all, what) after each layer.

    Returns:
        The report. `changed == 0` means that the output equals the input.

    Raises:
        ConfigError: `out` exists or lies inside an input.
        NeedsError: the method needs `aligned` or `base`.
        CheckpointError: broken files, NaN, an update for another model, no space.
        UnsupportedError: aligned equals base, or a kind of adapter where B A is not the update.

    Example:
        >>> report = repair("adapter", SafeLoRA(), aligned="chat", base="base", out="repaired")  # doctest: +SKIP
        >>> report.changed  # doctest: +SKIP
        37
    """
    started = time.perf_counter()
    forget_peak()
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise ConfigError(f"`out` {out} exists; give a new folder, a repair overwrites nothing")
    models = {Need.ALIGNED: aligned, Need.BASE: base, Need.UNALIGNED: unaligned, Need.SAFE: safe}
    data = {Need.HARMFUL: harmful, Need.ALIGNMENT: alignment, Need.CALIBRATION: calibration}
    _check_roles(method, models | data)
    rows = {need: _rows(need, given) for need, given in data.items() if given is not None and need in method.needs()}
    start, before = (None if where is None else Checkpoint.open(where) for where in (aligned, base))
    others: dict[Need, Tuned] = {}
    for need, where in ((Need.UNALIGNED, unaligned), (Need.SAFE, safe)):
        if where is not None:
            others[need] = open_tuned(where, aligned=start, every_tensor=method.every_tensor)
    source = open_tuned(tuned, aligned=start, base=before, others=others, every_tensor=method.every_tensor, merge=merge)
    _check_places(source, method, out)
    for need, other in others.items():
        if not {core(m) for m in other.modules} & {core(m) for m in source.modules}:
            raise CheckpointError(f"`{need}` {other.folder} was tuned on none of the modules of {source.folder}")
    whole = source.reverted() if revert else source.copied()
    given = {"out": out, "tuned": tuned, **{str(need): where for need, where in models.items()}}
    names: dict[str, Any] = {role: None if where is None else str(where) for role, where in given.items()}
    names["rows"] = {str(need): {"rows": len(own), "sha256": fingerprint(own)} for need, own in rows.items()}
    with _staging(out) as folder:
        work = _Work(source, method, folder, progress)
        work.found = method.prepare(Lab(source, rows)) if method.needs() else {}
        size = work.score()
        work.write(method.select(list(work.scores.values())), whole)
        report = RepairReport(
            method=method.info.name,
            parameters=method.parameters(),
            modules=tuple(work.rows.values()),
            untouched=() if revert else source.untouched,
            reverted=source.untouched if revert else (),
            notes=_notes(source, names["aligned"], work.rows, revert),
            inputs={str(file): sha256(file) for file in _inputs(source)},
            versions=_versions(),
            seconds=time.perf_counter() - started,
            bytes_read=size,
            peak_bytes=peak_bytes(),
            **names,
        )
        _describe(report, source, method, folder)
    return report


@dataclass
class _Work:
    """One repair under way: both passes over the modules, into `folder`."""

    source: Tuned
    method: Repair
    folder: Path
    progress: Progress | None
    found: Mapping[str, Any] = field(default_factory=dict)
    scores: dict[str, LayerScore] = field(default_factory=dict)
    rows: dict[str, LayerRow] = field(default_factory=dict)

    def score(self) -> int:
        """Pass 1: a score per module, and the bytes of weights that it took."""
        size = 0
        for module in self.source.modules:
            layer = self._layer(module)
            score = self.scores[module] = self.method.score(layer)
            self.rows[module] = _row(self.source, score)
            size += layer.nbytes(models=score.safety_norm is not None)
            self._say(len(self.scores), len(self.source.modules), "score")
        if self.scores and all(score.safety_norm == 0 for score in self.scores.values()):
            raise NeverSupported(_no_direction(self.source))
        return size

    def write(self, chosen: set[str], whole: Stored) -> None:
        """Pass 2: copy each weight file, then overwrite the chosen modules and whole tensors in the copy."""
        source = self.source
        by_file: dict[Path, list[str]] = {file: [] for file in source.shards}
        for module in source.modules:
            if module in chosen or source.writes_all:
                by_file[source.weight(module).file].append(module)
        for extra in source.extras:
            shutil.copy(extra, self.folder / extra.name)  # with its mode: a serving file may hold a secret
        done = count()
        for file, modules in by_file.items():
            held = weights_of(file)
            also = ((key, tensor) for key, tensor in whole.items() if key in held)
            tensors = chain(self._edits(modules, chosen, done), also)
            if isinstance(source, TunedAdapter) and self.method.form == "more" and chosen:
                self._grow(source, file, dict(tensors))
            else:
                copy_with(file, self.folder / file.name, tensors)

    def _edits(
        self, modules: Sequence[str], chosen: set[str], done: Iterator[int]
    ) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
        """New tensors of the modules by key, one module at a time."""
        for module in modules:
            layer = self._layer(module)
            old = self.source.unedited(layer)
            new = self._edit(layer, old) if module in chosen else {}
            yield from (new or (old if self.source.writes_all else {})).items()
            if module in chosen:
                self._say(next(done) + 1, len(chosen), "edit")

    def _edit(self, layer: Layer, old: Stored) -> Stored:
        """The stored form of an edited layer, noted in its row; empty if rounding leaves the old one."""
        wanted = self.method.edit(layer, self.scores[layer.module])
        stored = self.source.stored(layer, wanted)
        if stored.keys() == old.keys() and all(torch.equal(stored[key], old[key]) for key in old):
            return {}
        held, length, row = self.source.held(layer, stored), wanted.norm(), self.rows[layer.module]
        lost = _distance(held, wanted) / length if length else 0.0
        dtype = self.source.weight(layer.module).dtype
        note = f"rounding to {dtype} moved the new update by {lost:.0%}" if lost > COARSE else ""
        rank = held.rank if row.rank is not None else None
        self.rows[layer.module] = replace(row, edited=True, norm_after=held.norm(), rank=rank, note=note)
        return stored

    def _grow(self, source: TunedAdapter, file: Path, new: Stored) -> None:
        """Write an adapter anew whose factors have other ranks."""
        config, factors = grown(source.adapter, new)
        rewrite(file, self.folder / file.name, {**new, **factors})
        (self.folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _layer(self, module: str) -> Layer:
        return replace(self.source.layer(module), found=self.found.get(module))

    def _say(self, done: int, total: int, what: str) -> None:
        if self.progress:
            self.progress(done, total, what)


def _rows(need: Need, given: Rows) -> list[Row]:
    source: Source = "harmful" if need == Need.HARMFUL else "alignment" if need == Need.ALIGNMENT else "benign"
    return load_rows(given, source=source) if isinstance(given, str | Path) else list(given)


def _check_roles(method: Repair, given: Mapping[Need, Any]) -> None:
    """Everything that the method needs is there."""
    meaning = {
        Need.HARMFUL: "harmful prompts with harmful answers",
        Need.ALIGNMENT: "harmful prompts with safe answers",
        Need.CALIBRATION: "rows of the user's task",
        Need.ALIGNED: "the model that tuning started from",
        Need.BASE: "the model before alignment",
        Need.UNALIGNED: "the aligned model after tuning on unsafe rows",
        Need.SAFE: "the aligned model after tuning on safe rows",
    }
    for need in sorted(method.needs()):
        if given[need] is None:
            what = "a folder or a hub id" if need in MODELS else "rows, a file, a hub id or synthetic:<set>"
            raise NeedsError(f"{method.info.name} needs `{need}`, {meaning[need]}; give {what}")


def _check_places(source: Tuned, method: Repair, out: Path) -> None:
    """The output lies outside of every input; the two models are two."""
    folders = [m.folder for m in (source, source.aligned, source.base, *source.others.values()) if m is not None]
    if any(out.resolve().is_relative_to(folder.resolve()) for folder in folders):
        raise ConfigError(f"`out` {out} lies inside an input folder; give a folder elsewhere")
    if isinstance(source, TunedAdapter) and method.form == "dense":
        raise NeverSupported(
            f"{method.info.name} edits single weights, which no adapter can hold; with `merge=True` (--merge) the "
            "output is a full model"
        )
    whole = [str(need) for need, other in source.others.items() if isinstance(other, TunedModel)]
    if isinstance(source, TunedAdapter) and method.form == "more" and whole:
        raise NeverSupported(
            f"{method.info.name} adds the update of `{whole[0]}`, which is a full model and no adapter; with "
            "`merge=True` (--merge) the output is a full model"
        )
    pair = (source.aligned, source.base)
    if {Need.ALIGNED, Need.BASE} <= method.needs() and len({m.folder.resolve() for m in pair if m}) == 1:
        raise NeverSupported(_no_direction(source))


def _no_direction(source: Tuned) -> str:
    where = source.aligned.folder if source.aligned else ""
    return f"`aligned` and `base` hold the same weights ({where}), so that aligned - base gives no direction of safety"


def _distance(held: Delta, wanted: Delta) -> float:
    """||held - wanted||, without a matrix where the factor A is the same."""
    if held.a is wanted.a and held.scale == wanted.scale:
        return replace(held, b=held.b.float() - wanted.b.float()).norm()
    if held.a is not None and wanted.a is not None:
        return held.plus(wanted.times(-1.0)).norm()
    return Delta(b=held.dense().float() - wanted.dense().float()).norm()


def _row(source: Tuned, score: LayerScore) -> LayerRow:
    if isinstance(source, TunedAdapter | MergedAdapter):
        module = source.adapter.modules[score.module]
        return LayerRow.of(score, module.shape, module.rank if isinstance(source, TunedAdapter) else None)
    return LayerRow.of(score, source.weight(score.module).oriented, None)


def _notes(source: Tuned, aligned: str | None, rows: dict[str, LayerRow], revert: bool) -> tuple[str, ...]:
    notes = []
    if source.untouched and not revert:
        notes.append(
            f"{len(source.untouched)} trained tensors are outside of what this repair edits (see `untouched`); "
            "`revert=True` (--revert) sets them back"
        )
    if isinstance(source, TunedAdapter | MergedAdapter) and aligned is not None:
        said = source.adapter.base_name
        if said and Path(said).name != Path(aligned).name:
            notes.append(f"the adapter says that it was trained on {said}; shapes fit {aligned}, which was used")
    against = sum(row.signed is not None and row.signed < 0 and not row.edited for row in rows.values())
    if against:
        notes.append(f"{against} modules that were left alone point away from the alignment (`signed` < 0)")
    return tuple(notes)


def _inputs(source: Tuned) -> list[Path]:
    """Every file that the result depends on."""
    things = (source, source.aligned, source.base, *source.others.values())
    return [file for thing in things if thing is not None for file in thing.files]


def _describe(report: RepairReport, source: Tuned, method: Repair, folder: Path) -> None:
    """Put the report and the card beside the weights."""
    adapter = isinstance(source, TunedAdapter)
    base_model = source.adapter.base_name if isinstance(source, TunedAdapter) else ""
    report.save(folder)
    report.save_card(folder, method.info, base_model=base_model, adapter=adapter)


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A hidden sibling of `out` that takes its name at the end, and is removed if anything goes wrong."""
    folder = out.parent / f".{out.name}.{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        yield folder
        os.rename(folder, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(f"no space left to write {out}; nothing was written, make room first") from error
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}; nothing was written") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _versions() -> dict[str, str]:
    return {
        "moored": __version__,
        "torch": torch.__version__,
        "safetensors": version("safetensors"),
        "python": sys.version.split()[0],
    }
