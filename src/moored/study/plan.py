# SPDX-License-Identifier: Apache-2.0
"""From a recipe to its stages. What can be wrong with a recipe is found here, before anything is trained."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from moored.attacks.base import Attack
from moored.attacks.gate_evasion import GateEvasion
from moored.attacks.weight_oracle import WeightOracle
from moored.catalogue import Noun, find
from moored.data.load import load_rows, provenance
from moored.data.preferences import load_preferences
from moored.data.schema import Example, Preference, Row, fingerprint, normalise, overlap
from moored.data.schema import Source as RowSource
from moored.defenses.base import Defense
from moored.digest import Sha256, identity_of, sha256_of
from moored.errors import ConfigError, DataError, MooredError, NeedsError, NotYetSupported, unknown
from moored.hf.loaders import resolve_model
from moored.hf.train import Training
from moored.method import MODELS, Need
from moored.repairs.base import Repair
from moored.repairs.engine import SOURCES
from moored.study.evaluation import EvaluateStage
from moored.study.grid import Arm, spread
from moored.study.methods import build
from moored.study.recipe import Align, Data, Finetune, Line, Method, Oracle, Recipe, TrainingSpec
from moored.study.recipe import Attack as AttackSpec
from moored.study.stages import (
    AlignStage,
    AttackStage,
    FinetuneStage,
    OracleStage,
    RepairStage,
    Source,
    Stage,
    Subject,
    TwinStage,
    UploadStage,
)
from moored.tasks.as_attacked import AsAttacked
from moored.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The stages of one row of the table.

    Args:
        name: unique in the study.
        title: row heading.
        stages: those that make the model, in order; none for the model as shipped.
        evaluations: one per task.
        arm: the recipe's arm at its point; None for a reference row.
        note: one remark.
    """

    name: str
    title: str
    stages: tuple[Stage, ...]
    evaluations: tuple[EvaluateStage, ...]
    arm: Arm | None = None
    note: str = ""

    @property
    def recipe_name(self) -> str:
        """What the recipe calls it: the arm's name at any point of the grid, `shipped` or `aligned`."""
        return self.arm.arm if self.arm else self.name

    def needed(self) -> dict[str, Stage]:
        """Every stage that this row needs, by its key: its own, and all that those read."""
        found: dict[str, Stage] = {}
        waiting: list[Stage] = [*self.stages, *self.evaluations]
        while waiting:
            stage = waiting.pop()
            if stage.key not in found:
                found[stage.key] = stage
                waiting += stage.parents
        return found


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a study will do.

    Args:
        chains: rows of the table, references first.
        source: the first model.
        inputs: hashes of data and models by name.
        data: what `moored.data.load.provenance` says of every data set, once each.
        prompts: the normalised prompts of every set of rows, by its place in the recipe (of a task, its name), those of
            all rows of the table together.
    """

    chains: tuple[Chain, ...]
    source: Source
    inputs: Mapping[str, str] = field(default_factory=dict)
    data: tuple[Mapping[str, str], ...] = ()
    prompts: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def stages(self) -> list[Stage]:
        """Every stage once, parents first, each model's evaluations right after it."""
        ordered: dict[str, Stage] = {}
        for chain in self.chains:
            for stage in (*chain.stages, *chain.evaluations):
                ordered.setdefault(stage.key, stage)
        return list(ordered.values())

    def rows(self) -> dict[str, str]:
        """The title of the first row of the table that needs a stage, by the stage's key."""
        titles: dict[str, str] = {}
        for chain in self.chains:
            for stage in (*chain.stages, *chain.evaluations):
                titles.setdefault(stage.key, chain.title)
        return titles


def plan(recipe: Recipe, sha256: Sha256 | None = None) -> Plan:
    """The stages of a recipe, every method built and all data read.

    Args:
        recipe: what to do.
        sha256: hashes a file; a store remembers them.

    Raises:
        ConfigError: an unknown method or parameter, a value out of range, a model folder that does not exist.
        DataError: data that is missing or malformed, or a test prompt that is also trained on.
        NeedsError: a method lacks data or a model that it needs.
    """
    return _Planner(recipe, sha256 or sha256_of).plan()


def drawn(spec: Data, rows: list[Any], seed: int) -> list[Any]:
    """What a recipe takes of a data set: all of it, or a seeded draw of `limit` rows.

    Args:
        spec: of the recipe.
        rows: of the data set.
        seed: of the draw.

    Raises:
        ConfigError: there are fewer than `limit`.
    """
    if spec.limit is None:
        return rows
    if spec.limit > len(rows):
        raise ConfigError(f"`limit` of {spec.data} must be at most its {len(rows)} rows; got {spec.limit}")
    return random.Random(f"{spec.data} {seed}").sample(rows, spec.limit)


class _Planner:
    """Builds chains and reads each data set and model once."""

    def __init__(self, recipe: Recipe, sha256: Sha256):
        self.recipe, self.sha256 = recipe, sha256
        self.data: dict[tuple[str, str], list[Row] | list[Preference]] = {}
        self.sources: dict[str, Source] = {}
        self.uploads: dict[str, Sequence[Example]] = {}

    def plan(self) -> Plan:
        arms = [self._chain(arm) for arm in spread(self.recipe)]
        chains = (*self._references(arms), *arms)
        self._check_promises(chains)
        inputs = {f"model {source.where}": source.identity for source in self.sources.values()}
        for (where, _), rows in self.data.items():
            inputs[f"data {Path(where).name}"] = fingerprint(rows)
        return Plan(
            chains=chains,
            source=next(iter(self.sources.values())),
            inputs=inputs,
            data=self._provenance(chains),
            prompts=self._prompts(chains),
        )

    def _provenance(self, chains: Sequence[Chain]) -> tuple[Mapping[str, str], ...]:
        asked = [stage.task.data for chain in chains for stage in chain.evaluations]
        return tuple(provenance(where) for where in dict.fromkeys([where for where, _ in self.data] + asked))

    def _prompts(self, chains: Sequence[Chain]) -> dict[str, frozenset[str]]:
        """What each set of rows asks."""
        found: dict[str, set[str]] = {}
        for chain in chains:
            asked = [(f"task {stage.task.name}", stage.rows) for stage in chain.evaluations]
            made = [stage for stage in chain.stages if isinstance(stage, AlignStage | FinetuneStage | RepairStage)]
            for what, rows in (*self._trained_on(made), *asked):
                found.setdefault(what, set()).update(normalise(row.question) for row in rows)
        return {what: frozenset(prompts) for what, prompts in found.items()}

    def _check_promises(self, chains: Sequence[Chain]) -> None:
        """Refuse an expectation of an arm or a task that the recipe does not have."""
        arms = {chain.recipe_name for chain in chains}
        tasks = {stage.task.name for chain in chains for stage in chain.evaluations}
        for promise in self.recipe.expect:
            for arm in (promise.arm, promise.against):
                if arm is not None and arm not in arms:
                    raise unknown("arm in `expect`", arm, arms)
            if promise.task not in tasks:
                raise unknown("task in `expect`", promise.task, tasks)

    def _chain(self, arm: Arm) -> Chain:
        try:
            made = self._stages(arm.line)
            subject: Subject = made[-1] if made else self._source(arm.line.model)
            tasks = self._tasks(arm.line, made, subject)
        except MooredError as error:
            raise type(error)(f"arm {arm.arm!r}: {error}") from error
        return Chain(
            name=arm.name,
            title=arm.title,
            note=arm.note,
            arm=arm,
            stages=_whole(made),
            evaluations=tasks,
        )

    def _stages(self, line: Line) -> list[Any]:
        """The stages that make models, in order; the attack hangs on the fine-tuning."""
        start: Source | AlignStage = self._source(line.model)
        stages: list[Any] = []
        if line.align is not None:
            start = self._align(line, line.align)
            stages.append(start)
        if line.finetune is not None:
            stages.append(self._finetune(line, line.finetune, start))
        if line.oracle is not None:
            stages.append(self._oracle(line, line.oracle, start))
        for method in line.repairs:
            stages.append(self._repair(line, method, stages[-1]))
        return stages

    def _align(self, line: Line, spec: Align) -> AlignStage:
        rows = tuple(row for data in spec.data for row in self._rows(data, "alignment", line.seed))
        _answered(rows, "align.data")
        defenses = _built("defenses", spec.defenses)
        roles = self._roles("align", spec.roles, defenses, line.seed, {Need.ALIGNMENT.value: rows})
        return AlignStage(
            source=self._source(line.model),
            rows=rows,
            training=_training(spec.training, line.seed),
            defenses=defenses,
            roles=roles,
        )

    def _finetune(self, line: Line, spec: Finetune, start: Source | AlignStage) -> FinetuneStage:
        defenses = (*_built("defenses", spec.defenses), *_evading(spec))
        needed = {need: type(d).__name__ for d in defenses for need in d.needs()}
        if spec.dpo is not None:
            must_defend_dpo(defenses)
        return FinetuneStage(
            start=start,
            upload=self._uploaded(line, start),
            training=_training(spec.training, line.seed if spec.seed is None else spec.seed),
            beta=None if spec.dpo is None else spec.dpo.beta,
            defenses=defenses,
            roles=self._roles("finetune", spec.roles, defenses, line.seed, {}, pairs=spec.dpo is not None),
            probe=tuple(self._rows(spec.probe, "alignment", line.seed)) if spec.probe else (),
            base=self._base(line, needed[Need.BASE]) if Need.BASE in needed else None,
        )

    def _base(self, line: Line, method: str) -> Source:
        """The model before alignment."""
        where = line.base if line.base is not None else (line.model if line.align is not None else None)
        if where is None:
            raise NeedsError(f"{method} needs the model before alignment; add `base: <folder or hub id>` to the recipe")
        return self._source(where)

    def _uploaded(self, line: Line, start: Source | AlignStage) -> AttackStage | UploadStage:
        if line.attack is not None:
            return self._attack(line, line.attack, start)
        pairs = line.finetune is not None and line.finetune.dpo is not None
        rows = tuple(self._examples(line.upload, "benign", line.seed, pairs=pairs))
        _answered(rows, "upload")
        return UploadStage(rows=rows)

    def _attack(self, line: Line, spec: AttackSpec, start: Source | AlignStage) -> AttackStage:
        attack = _attacking(line, spec)
        needs = attack.needs()
        return AttackStage(
            method=attack,
            benign=tuple(self._rows(spec.benign, "benign", line.seed)),
            harmful=tuple(self._rows(spec.harmful, "harmful", line.seed)),
            start=start if needs else None,
            base=self._base(line, type(attack).__name__) if Need.BASE in needs else None,
            judging=self._folders(attack.loads()),
        )

    def _oracle(self, line: Line, spec: Oracle, start: Source | AlignStage) -> OracleStage:
        return OracleStage(start=start, base=self._base(line, "oracle"), method=WeightOracle(**spec.model_dump()))

    def _repair(self, line: Line, method: Method, tuned: FinetuneStage | OracleStage | RepairStage) -> RepairStage:
        (repair,) = _built("repairs", [method])
        needs = repair.needs()
        twins = needs & {Need.UNALIGNED, Need.SAFE}
        return RepairStage(
            tuned=tuned,
            method=repair,
            base=self._base(line, type(repair).__name__) if Need.BASE in needs else None,
            roles=self._roles("repair_with", line.repair_with.roles, [repair], line.seed, {}),
            twins={need: self._twin(line, need, repair, tuned.start) for need in sorted(twins)},
        )

    def _twin(self, line: Line, need: Need, repair: Repair, start: Source | AlignStage) -> TwinStage:
        """The aligned model, tuned by the provider."""
        spec = next((twin for role, twin in line.repair_with.twins.items() if role == need), None)
        if spec is None:
            raise NeedsError(
                f"{type(repair).__name__} needs the twin `{need}`; add `twins: {{{need}: {{data: [...], training: "
                "{...}}}` to `repair_with`"
            )
        source: RowSource = "harmful" if need == Need.UNALIGNED else "alignment"
        rows = tuple(row for data in spec.data for row in self._rows(data, source, line.seed))
        _answered(rows, f"repair_with.twins.{need}.data")
        return TwinStage(role=need, start=start, rows=rows, training=_training(spec.training, line.seed))

    def _tasks(self, line: Line, made: Sequence[Any], subject: Subject) -> tuple[EvaluateStage, ...]:
        stages = []
        start = next((stage for stage in made if isinstance(stage, AlignStage)), None) or self._start(line)
        for name, parameters in line.tasks.items():
            task: Task = build("tasks", name, parameters)
            compares = Need.ALIGNED in task.needs
            if compares and start is None:
                continue  # the model as shipped, of which the study's aligned one is a descendant
            if isinstance(task, AsAttacked) and line.attack is not None:
                task = replace(task, attack=_attacking(line, line.attack))
            rows = tuple(task.rows())
            self._held_out(task, rows, made)
            compared = start if compares else None
            judging = self._folders(task.loads())
            stages.append(EvaluateStage(subject=subject, task=task, rows=rows, start=compared, judging=judging))
        return tuple(stages)

    def _start(self, line: Line) -> Source | None:
        """What fine-tuning starts from, of a line whose stages do not align; None if others of its stages do."""
        return self._source(line.model) if line.align is None else None

    def _held_out(self, task: Task, rows: Sequence[Row], made: Sequence[Any]) -> None:
        """Refuse a task whose prompts are trained on."""
        for what, trained in self._trained_on(made):
            if shared := overlap(rows, trained):
                raise DataError(
                    f"{len(shared)} prompts of task `{task.name}` are also in `{what}` (for example "
                    f"{min(shared)[:60]!r}); measure on prompts that are not trained on"
                )

    def _trained_on(self, made: Sequence[Any]) -> Iterator[tuple[str, Sequence[Example]]]:
        """Every set of rows that the stages train on, with its place in the recipe."""
        for stage in made:
            if isinstance(stage, AlignStage):
                yield "align.data", stage.rows
            if isinstance(stage, FinetuneStage):
                yield stage.upload.kind, self._upload(stage.upload)
            if isinstance(stage, RepairStage):
                for twin in stage.twins.values():
                    yield f"repair_with.twins.{twin.role}", twin.rows
            where = "repair_with" if isinstance(stage, RepairStage) else stage.kind
            for role, rows in stage.roles.items():
                yield f"{where}.roles.{role}", rows

    def _upload(self, attack: AttackStage | UploadStage) -> Sequence[Example]:
        """The rows that an attack will write, or can choose; making them here finds out early whether it can."""
        if isinstance(attack, UploadStage):
            return attack.rows
        if attack.key not in self.uploads:
            self.uploads[attack.key] = attack.method.candidates(attack.benign, attack.harmful)
        return self.uploads[attack.key]

    def _roles(
        self,
        where: str,
        given: Mapping[str, Any],
        methods: Sequence[Defense | Repair],
        seed: int,
        own: Mapping[str, tuple[Row, ...]],
        *,
        pairs: bool = False,
    ) -> dict[str, Any]:
        """The data that the methods need, by role; what none needs is not read."""
        roles: dict[str, Any] = {}
        for method in methods:
            for need in sorted(method.needs() - MODELS):
                if need in given:
                    source = SOURCES[need]
                    roles[need] = tuple(self._examples(given[need], source, seed, pairs=pairs))
                    _answered(roles[need], f"{where}.roles.{need}")
                elif need in own:
                    roles[need] = own[need]
                else:
                    raise NeedsError(
                        f"{type(method).__name__} needs `{need}` data; add `roles: {{{need}: <data>}}` to `{where}`"
                    )
        return roles

    def _rows(self, spec: Any, source: RowSource, seed: int) -> list[Row]:
        return self._examples(spec, source, seed, pairs=False)

    def _examples(self, spec: Any, source: RowSource, seed: int, *, pairs: bool) -> list[Any]:
        """The rows (or preferences) of a data set, or a seeded draw of `limit` of them."""
        known = (spec.data, "preferences" if pairs else source)
        if known not in self.data:
            self.data[known] = load_preferences(spec.data) if pairs else load_rows(spec.data, source=source)
        return drawn(spec, self.data[known], seed)

    def _source(self, where: str) -> Source:
        if where not in self.sources:
            resolved = resolve_model(where)
            self.sources[where] = Source(where=where, resolved=resolved, identity=identity_of(resolved, self.sha256))
        return self.sources[where]

    def _folders(self, models: Iterable[str]) -> tuple[Source, ...]:
        """Those that are folders: what is in them decides, and not where they lie. Hub ids stand for themselves."""
        return tuple(self._source(where) for where in dict.fromkeys(models) if Path(where).expanduser().is_dir())

    def _references(self, arms: Sequence[Chain]) -> Iterator[Chain]:
        """The models before the user's data: as shipped, and each aligned start."""
        shipped: dict[str, str] = {}
        aligned: dict[str, Chain] = {}
        for chain in arms:
            assert chain.arm is not None
            line = chain.arm.line
            if line.model not in shipped:
                name = "shipped" if not shipped else f"shipped@{Path(line.model).name}"
                shipped[line.model] = name
                yield Chain(
                    name=name,
                    title="Model as shipped" if name == "shipped" else f"{Path(line.model).name} as shipped",
                    stages=(),
                    evaluations=self._tasks(line, (), self._source(line.model)),
                )
        for chain in arms:
            start = next((stage for stage in chain.stages if isinstance(stage, AlignStage)), None)
            if start is not None and start.key not in aligned:
                aligned[start.key] = self._aligned(chain, start, first=not aligned)
        yield from aligned.values()

    def _aligned(self, chain: Chain, start: AlignStage, *, first: bool) -> Chain:
        assert chain.arm is not None
        methods = " + ".join(type(defense).__name__ for defense in start.defenses)
        what = methods or ("" if first else chain.arm.title)
        return Chain(
            name="aligned" if first else f"aligned@{chain.name}",
            title=f"Aligned start ({what})" if what else "Aligned start",
            stages=(start,),
            evaluations=self._tasks(chain.arm.line, (start,), start),
        )


def _built(noun: Noun, methods: Sequence[Method]) -> tuple[Any, ...]:
    return tuple(build(noun, method.name, method.parameters) for method in methods)


def _evading(spec: Finetune) -> tuple[Defense, ...]:
    """What an attacker who runs the training adds to it."""
    return (GateEvasion(**spec.evade.model_dump()),) if spec.evade else ()


def _attacking(line: Line, spec: AttackSpec) -> Attack:
    """The attack, with the line's seed unless it has one of its own."""
    method = spec.method
    seeded = any(f.name == "seed" for f in fields(find("attacks", method.name)))
    made: Attack = build("attacks", method.name, ({"seed": line.seed} if seeded else {}) | method.parameters)
    return made


def _training(spec: TrainingSpec, seed: int) -> Training:
    return Training(**spec.model_dump(exclude_none=True), seed=seed)


def _whole(made: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with each attack in front of the fine-tuning that reads it, and each twin in front of its repair."""
    whole: list[Stage] = []
    for stage in made:
        if isinstance(stage, FinetuneStage):
            whole.append(stage.upload)
        if isinstance(stage, RepairStage):
            whole += stage.twins.values()
        whole.append(stage)
    return tuple(whole)


def must_defend_dpo(defenses: Sequence[Defense]) -> None:
    """Refuse defences that cannot act on a training on preferences.

    Raises:
        NotYetSupported: the first of them, and why.
    """
    from moored.hf.checks import one_answer_needed

    for reason in (one_answer_needed(part) for defense in defenses for part in defense.parts()):
        if reason:
            raise NotYetSupported(f"{reason}, and DPO trains on pairs of answers; leave it out, or train on rows")


def _answered(rows: Sequence[Example], where: str) -> None:
    for number, row in enumerate(rows, start=1):
        if not row.answered:
            raise DataError(f"row {number} of `{where}` has no answer to train on: {row.question[:60]!r}")
