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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from moored import __version__
from moored.data.load import load_rows
from moored.data.schema import Row, Source, fingerprint
from moored.errors import CheckpointError, ConfigError, DataError, NeedsError, NeverSupported, NotYetSupported
from moored.hf import vllm_lora
from moored.hf.adapters import CONFIG, grown
from moored.hf.checkpoint import Checkpoint, Cut, copy_with, core, rewrite, weights_of
from moored.hf.device import device_for
from moored.hf.ledger import Ledger
from moored.hf.patch import PATCH, Change, change, save_patch
from moored.memory import forget_peak, peak_bytes
from moored.method import MODELS, Need
from moored.progress import Progress
from moored.repairs.base import Delta, Layer, LayerScore, Repair
from moored.repairs.lab import Lab
from moored.repairs.report import LayerRow, RepairReport
from moored.repairs.tuned import MergedAdapter, Stored, Tuned, TunedAdapter, TunedModel, open_tuned

COARSE = 0.05
"""Relative error of a stored update above which its row says so."""

SOURCES: dict[Need, Source] = {Need.HARMFUL: "harmful", Need.ALIGNMENT: "alignment", Need.CALIBRATION: "benign"}
"""Which kind of data the rows of a role are."""

Rows = str | Path | Sequence[Row]
"""Rows, or where they are."""


def repair(
    tuned: str | Path,
    method: Repair | Literal["auto"],
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
    patch: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> RepairReport:
    """Repair a tuned adapter or checkpoint into a new folder.

    Args:
        tuned: folder of a PEFT LoRA adapter or of a full model, or a hub id.
        method: for example `SafeLoRA()`; "auto" tries the catalogue on validation prompts (`moored.choose`).
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
        patch: beside a full model, write what differs from the tuned one as positions and numbers (`hf.patch`): small
            where a repair edits single numbers. Not with `revert`.
        device: where products with weights of the models are made, block by block, and where models run: "cpu",
            "cuda", "cuda:1" ...; None: the GPU if there is one. Sums are in fp32 at least on all of them. The same
            inputs on the same device give the same bits, on another one the last of them may differ; the report
            names it.
        progress: called with (layers done, layers in all, what) after each layer; while layers are scored, `what` has
            the bytes of weights that were read per second.

    Returns:
        The report. `changed == 0` means that the output equals the input.

    Raises:
        ConfigError: `out` exists or lies inside an input; a device that this machine has not.
        NeedsError: the method needs `aligned` or `base`.
        DataError: rows are broken, or there are none.
        CheckpointError: broken files, NaN, an update for another model, no space.
        UnsupportedError: aligned equals base, or a kind of adapter where B A is not the update.

    Example:
        >>> report = repair("adapter", SafeLoRA(), aligned="chat", base="base", out="repaired")  # doctest: +SKIP
        >>> report.changed  # doctest: +SKIP
        37
    """
    given: dict[str, Any] = {"aligned": aligned, "base": base, "unaligned": unaligned, "safe": safe}
    given |= {"harmful": harmful, "alignment": alignment, "calibration": calibration}
    if method == "auto":
        from moored.choose import choose  # a search runs repairs

        options: dict[str, Any] = {"merge": merge, "revert": revert, "patch": patch, "device": device}
        return choose(tuned, out=out, **given, **options, progress=progress).report
    started = time.perf_counter()
    forget_peak()
    out, place = fresh(out), device_for(device, "repair")
    _check_roles(method, given)
    rows = {need: _rows(need, given[need]) for need in sorted(method.needs() - MODELS)}
    names: dict[str, Any] = {"out": str(out), "tuned": str(tuned), "device": str(place)}
    names |= {str(role): None if given[role] is None else str(given[role]) for role in MODELS}
    names["rows"] = {str(need): {"rows": len(own), "sha256": fingerprint(own)} for need, own in rows.items()}
    with Ledger() as ledger:
        source = _open(tuned, method, given, merge, ledger)
        _check_places(source, method, out)
        if patch and (revert or isinstance(source, TunedAdapter)):
            raise ConfigError("a patch is of what a repair edits in a full model: `merge=True` and no `revert`")
        whole = source.reverted() if revert else source.copied()
        with beside(out) as folder:
            work = _Work(source, method, folder, progress, ledger, place, changes={} if patch else None)
            for file in _inputs(source, run=bool(rows)):
                ledger.file(file)
            if method.needs():
                work.prepare(Lab(source, rows, device=str(place)))
            work.score()
            work.write(method.select(list(work.scores.values())), whole)
            report = work.report(names, revert, started)
            _describe(report, source, method, folder)
            os.rename(folder, out)
    return report


@dataclass
class _Work:
    """One repair under way: both passes over the modules, into `folder`."""

    source: Tuned
    method: Repair
    folder: Path
    progress: Progress | None
    ledger: Ledger
    device: torch.device
    found: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    changes: dict[str, list[Change]] | None = None
    scores: dict[str, LayerScore] = field(default_factory=dict)
    rows: dict[str, LayerRow] = field(default_factory=dict)
    size: int = 0
    reading: float = 0.0

    def prepare(self, lab: Lab) -> None:
        """Before pass 1: what the method finds out by running a model, which is let go of afterwards."""
        self.found, self.notes = self.method.prepare(lab), lab.notes

    def score(self) -> None:
        """Pass 1: a score per module, and the bytes of weights and the seconds that it took."""
        started = time.perf_counter()
        for module in self.source.modules:
            layer = self._layer(module)
            with _a_core_for_hashing():
                score = self.method.score(layer)
            self.scores[module] = _kept(score, layer)
            self.rows[module] = _row(self.source, score)
            self.size += layer.nbytes(models=score.safety_norm is not None)
            self.reading = time.perf_counter() - started
            rate = self.size / self.reading / 1e6
            self._say(len(self.scores), len(self.source.modules), f"score, {rate:.0f} MB/s")
        if self.scores and all(score.safety_norm == 0 for score in self.scores.values()):
            raise NeverSupported(_no_direction(self.source))

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
            also = ((key, (), tensor) for key, tensor in whole.items() if key in held)
            tensors = chain(self._edits(modules, chosen, done), also)
            if isinstance(source, TunedAdapter) and self.method.form == "more" and chosen:
                self._grow(source, file, {key: tensor for key, _, tensor in tensors})
            else:
                copy_with(file, self.folder / file.name, tensors)
        if self.changes is not None:
            shapes = {key: weight.shape for file in source.shards for key, weight in weights_of(file).items()}
            save_patch(self.folder / PATCH, self.changes, shapes)

    def report(self, names: Mapping[str, Any], revert: bool, started: float) -> RepairReport:
        """What was done since `started`."""
        source, rows = self.source, tuple(self.rows.values())
        return RepairReport(
            method=self.method.info.name,
            parameters=self.method.parameters(),
            modules=rows,
            untouched=() if revert else source.untouched,
            reverted=source.untouched if revert else (),
            notes=(
                *_notes(source, names["aligned"], self.rows, revert),
                *self.method.remarks(rows),
                *self.notes,
                *filter(None, [vllm_lora.remark(self.folder)]),
            ),
            inputs=self.ledger.files(),
            tensors=self.ledger.tensors(),
            versions=_versions(),
            seconds=time.perf_counter() - started,
            bytes_read=self.size,
            bytes_per_second=self.size / self.reading if self.reading else 0.0,
            peak_bytes=peak_bytes(),
            **names,
        )

    def _edits(
        self, modules: Sequence[str], chosen: set[str], done: Iterator[int]
    ) -> Iterator[tuple[str, Cut, Float[Tensor, "..."]]]:
        """New tensors of the modules by key, or parts of them, one module at a time."""
        for module in modules:
            cuts = self.source.cuts(module)
            layer = self._layer(module)
            old = self.source.unedited(layer)
            new = self._edit(layer, old) if module in chosen else {}
            if self.changes is not None:
                for key, tensor in new.items():
                    whole = self.source.weight(module).shape
                    self.changes.setdefault(key, []).append(change(old[key], tensor, whole, cuts[key]))
            for key, tensor in (new or (old if self.source.writes_all else {})).items():
                yield key, cuts[key], tensor
            if module in chosen:
                self._say(next(done) + 1, len(chosen), "edit")

    def _edit(self, layer: Layer, old: Stored) -> Stored:
        """The stored form of an edited layer, noted in its row; empty if rounding leaves the old one."""
        wanted = self.method.edit(layer, _whole(self.scores[layer.module], layer)).cpu()
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
        return replace(self.source.layer(module), found=self.found.get(module), device=self.device)

    def _say(self, done: int, total: int, what: str) -> None:
        if self.progress:
            self.progress(done, total, what)


def _kept(score: LayerScore, layer: Layer) -> LayerScore:
    """A score to keep until pass 2: its candidate on the CPU, and without the factor A that the layer has.

    A is a view of the mapped adapter; kept, it would keep the whole file mapped once per layer.
    """
    if score.candidate is None:
        return score
    candidate = score.candidate.cpu()
    return replace(score, candidate=replace(candidate, a=None) if candidate.a is layer.delta.a else candidate)


def _whole(score: LayerScore, layer: Layer) -> LayerScore:
    """The reverse of `_kept`."""
    if score.candidate is None or score.candidate.a is not None:
        return score
    return replace(score, candidate=replace(score.candidate, a=layer.delta.a))


@contextmanager
def _a_core_for_hashing() -> Iterator[None]:
    """A thread less for products: with one more than there are cores they take twice as long.

    Always, and not only while hashing is behind: how a product is split decides its last bits, and a repair is a
    function of its inputs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rows(need: Need, given: Rows) -> list[Row]:
    rows = load_rows(given, source=SOURCES[need]) if isinstance(given, str | Path) else list(given)
    if not rows:
        raise DataError(f"`{need}` holds no rows; give at least one")
    return rows


def _check_roles(method: Repair, given: Mapping[str, Any]) -> None:
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


def _open(tuned: str | Path, method: Repair, models: Mapping[str, Any], merge: bool, ledger: Ledger) -> Tuned:
    """What is repaired, with the other models; they have modules in common."""
    pair = (models[Need.ALIGNED], models[Need.BASE])
    aligned, base = (None if where is None else Checkpoint.open(where, ledger=ledger) for where in pair)
    others: dict[Need, Tuned] = {}
    for need in (Need.UNALIGNED, Need.SAFE):
        where = models[need]
        if where is not None:
            others[need] = open_tuned(where, aligned=aligned, every_tensor=method.every_tensor)
    how: dict[str, Any] = {"every_tensor": method.every_tensor, "merge": merge, "split": method.fused}
    source = open_tuned(tuned, aligned=aligned, base=base, others=others, **how)
    for need, other in others.items():
        if not {core(m) for m in other.modules} & {core(m) for m in source.modules}:
            raise CheckpointError(f"`{need}` {other.folder} was tuned on none of the modules of {source.folder}")
    return source


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
    if isinstance(source, TunedAdapter) and method.form == "more" and not source.adapter.separate:
        raise NotYetSupported(
            f"{method.info.name} adds ranks, and the factors in {source.folder} are shared by several layers (experts, "
            "or a fused weight that is split); with `merge=True` (--merge) the output is a full model"
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


def _inputs(source: Tuned, *, run: bool) -> list[Path]:
    """Every file that the result depends on as a whole; of the models that are only compared with, no weights.

    Args:
        source: with the models.
        run: whether the models were run.
    """
    files = [file for thing in (source, *source.others.values()) for file in thing.files] + source.shards
    for model in (source.aligned, source.base):
        if model is not None:
            files += model.files if run else model.headers
    return files


def _describe(report: RepairReport, source: Tuned, method: Repair, folder: Path) -> None:
    """Put the report and the card beside the weights."""
    adapter = isinstance(source, TunedAdapter)
    base_model = source.adapter.base_name if isinstance(source, TunedAdapter) else ""
    report.save(folder)
    report.save_card(folder, method.info, base_model=base_model, adapter=adapter)


def fresh(out: str | Path) -> Path:
    """The folder to write, which must not exist.

    Args:
        out: as given.

    Raises:
        ConfigError: it exists.
    """
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise ConfigError(f"`out` {out} exists; give a new folder, a repair overwrites nothing")
    return out


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A hidden sibling of `out` to work in; what has not taken the name of `out` by the end is removed.

    Args:
        out: the folder to write.

    Raises:
        CheckpointError: no space, or a place that cannot be written to.
    """
    folder = out.parent / f".{out.name}.{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        yield folder
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
