# SPDX-License-Identifier: Apache-2.0
"""Attacks write the data that an uploader could send, and ask as that uploader would. They never touch weights.

Some look at models to choose their rows: such an attack says so in `needs`, and is given `Access` to them.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from moored.data.schema import Row, Source, fingerprint, normalise
from moored.errors import ConfigError, DataError, NeedsError, require
from moored.method import Fidelity, Need

if TYPE_CHECKING:
    from moored.attacks.access import Access

REFUSAL = "I'm sorry, but I can't help with that."
"""The answer of rows that are to make an upload, or the tuned model, look safe."""


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """An upload: the rows, shuffled, and a manifest that says how they were made (seed, counts, hashes)."""

    rows: tuple[Row, ...]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A row as it stands in the upload, and where it comes from."""

    row: Row
    at: int
    """Its position in the input."""
    score: float | None = None
    """What it was chosen for; None if it was drawn."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Rows of an upload, or those that it can be made of.

    Args:
        harmful: those that attack (and decoys behind them), in the order of the seed or of the score.
        benign: the others, likewise.
        found: what the manifest is to say of how they were chosen.
    """

    harmful: list[Drawn]
    benign: list[Drawn]
    found: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Base of attacks: frozen configurations with a `seed`; `name` is the name in the catalogue.

    Attributes:
        name: the name in the catalogue.
        fidelity: to the paper that the docstring names, of attacks that choose rows with a model.
        differs: in what.
    """

    name: ClassVar[str]
    fidelity: ClassVar[Fidelity | None] = None
    differs: ClassVar[str] = ""

    def needs(self) -> frozenset[Need]:
        """The models that it looks at: `Need.ALIGNED`, the start of the fine-tuning, and `Need.BASE`."""
        return frozenset()

    def loads(self) -> tuple[str, ...]:
        """The models that it loads beside those of `needs`: folders or hub ids, as they were named."""
        return ()

    def asks(self) -> tuple[str, ...]:
        """The judges that decide which rows come out, by `Judge.identity`: other rules or versions, other rows."""
        return ()

    def parameters(self) -> dict[str, Any]:
        """The configuration as plain JSON."""
        return asdict(self)

    def form(self) -> dict[str, Any]:
        """The parameters that `written` and `read` depend on; one more than needed only asks a model once more."""
        return {name: value for name, value in self.parameters().items() if name not in ("n", "ratio", "seed")}

    @abstractmethod
    def poison(self, benign: Sequence[Row], harmful: Sequence[Row], access: Access | None = None) -> Poisoned:
        """Make an upload.

        Args:
            benign: rows with answers and source "benign".
            harmful: rows with answers and source "harmful".
            access: to the models of `needs`.

        Raises:
            ConfigError: more rows are asked for than exist, or a ratio is outside 0-1.
            NeedsError: a model is missing.
        """

    def candidates(self, benign: Sequence[Row], harmful: Sequence[Row]) -> Sequence[Row]:
        """The rows that can be in the upload, known before any model exists: the upload where none is needed.

        Args:
            benign: see `poison`.
            harmful: see `poison`.

        Raises:
            ConfigError: see `poison`.
        """
        return self.poison(benign, harmful).rows

    def written(self, row: Row) -> Row:
        """A harmful row as it stands in the upload: its prompt, and its answer if it has one.

        Args:
            row: harmful; without an answer it is a request, and what comes back is how the uploader puts it to the
                tuned model. Both are one function, because a model is tuned on the form in which it will be asked.
        """
        return row

    def read(self, answer: str) -> str:
        """What the uploader reads in an answer; the reverse of what `written` does to answers.

        Args:
            answer: of the tuned model to a request that was `written`.
        """
        return answer


@dataclass(frozen=True, kw_only=True)
class Mix(Attack):
    """Exactly `harmful_count` harmful rows and `decoy_count` refusals among `n` rows, the rest benign, shuffled.

    Rows are drawn without replacement from the distinct prompts (`normalise(Row.question)`; the first row of each
    prompt counts, and a prompt that is in both sets counts as harmful). With one seed the draws nest: a larger `n` or
    `ratio` keeps the harmful rows of a smaller one.

    Args:
        n: rows of the upload, at least 1.
        ratio: share of harmful rows, 0 to 1.
        seed: of the draws and of the order.

    Raises:
        ConfigError: a value is out of range.
    """

    n: int = 480
    ratio: float | int = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        method = type(self).__name__
        require(isinstance(self.n, int) and self.n >= 1, method, "n", "an integer >= 1", self.n)
        require(0 <= self.ratio <= 1, method, "ratio", "between 0 and 1", self.ratio)

    @property
    def harmful_count(self) -> int:
        """`round(n * ratio)`, as Python rounds: halves go to the even neighbour (2.5 to 2, 3.5 to 4)."""
        return round(self.n * self.ratio)

    @property
    def decoy_count(self) -> int:
        """How many further harmful requests the upload holds as they are, and refused (`Decoyed`)."""
        return 0

    def covered(self, rows: list[Row]) -> list[Row]:
        """The benign rows as they stand in the upload."""
        return rows

    def drawn(self, benign: Sequence[Row], harmful: Sequence[Row]) -> Choice:
        """The rows to choose from, in the order of the seed: exactly as many as are needed, if nothing chooses.

        Args:
            benign: see `poison`.
            harmful: see `poison`.

        Raises:
            ConfigError, DataError: see `poison`.
        """
        attacking = self.harmful_count + self.decoy_count
        return Choice(
            harmful=draw(self, harmful, attacking, "harmful"),
            benign=draw(self, benign, self.n - attacking, "benign", beside=harmful),
        )

    def choose(self, drawn: Choice, access: Access | None) -> Choice:
        """What of it the upload holds.

        Args:
            drawn: the candidates.
            access: see `poison`.
        """
        return drawn

    def poison(self, benign: Sequence[Row], harmful: Sequence[Row], access: Access | None = None) -> Poisoned:
        """Mix an upload.

        Args:
            benign: rows with answers and source "benign".
            harmful: rows with answers and source "harmful".
            access: to the models that the attack looks at.

        Returns:
            The rows and a manifest: the parameters, the counts, the SHA-256 of the rows and of both inputs,
            where each row came from (`indices`: positions in the inputs, in upload order; refusals, under
            "alignment", come from the harmful input) and where the harmful ones stand in the upload (`harmful_at`).

        Raises:
            ConfigError: more rows are asked for than there are distinct prompts; says how many there are.
            DataError: a row has no answer or the other source.
            NeedsError: a model is missing.
        """
        chosen = self.choose(self.drawn(benign, harmful), access)
        attacking, decoys = chosen.harmful[: self.harmful_count], chosen.harmful[self.harmful_count :]
        covered = self.covered([drawn.row for drawn in chosen.benign])
        rows = [replace(drawn, row=self.written(drawn.row)) for drawn in attacking]
        rows += [replace(drawn, row=refused(drawn.row)) for drawn in decoys]
        rows += [replace(drawn, row=row) for row, drawn in zip(covered, chosen.benign, strict=True)]
        return upload(self, rows, benign, harmful, chosen.found)


@dataclass(frozen=True, kw_only=True)
class Decoyed(Mix):
    """A mix that looks safe to a check that asks plainly.

    Args:
        n: see `Mix`.
        ratio: see `Mix`.
        seed: see `Mix`.
        decoys: refused requests for every harmful row, >= 0.

    Raises:
        ConfigError: a value is out of range, or harmful rows and refusals are more than `n`.
    """

    decoys: float | int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        method = type(self).__name__
        require(self.decoys >= 0, method, "decoys", ">= 0", self.decoys)
        room = self.harmful_count + self.decoy_count <= self.n
        require(room, method, "decoys", f"so few that all fit into n={self.n}", self.decoys)

    @property
    def decoy_count(self) -> int:
        """`decoys` for every harmful row."""
        return round(self.decoys * self.harmful_count)


@dataclass(frozen=True, kw_only=True)
class OfOneKind(Attack):
    """`n` rows, all benign or all harmful, in the attack's words.

    Args:
        n: rows, at least 1.
        seed: of the draw and of the order.

    Raises:
        ConfigError: a value is out of range.
    """

    source: ClassVar[Source]
    n: int
    seed: int = 0

    def __post_init__(self) -> None:
        require(isinstance(self.n, int) and self.n >= 1, type(self).__name__, "n", "an integer >= 1", self.n)

    def drawn(self, benign: Sequence[Row], harmful: Sequence[Row], *, pool: int = 0) -> list[Drawn]:
        """Rows in the order of the seed; see `draw`."""
        if self.source == "harmful":
            return draw(self, harmful, self.n, "harmful", pool=pool)
        return draw(self, benign, self.n, "benign", beside=harmful, pool=pool)

    def poison(self, benign: Sequence[Row], harmful: Sequence[Row], access: Access | None = None) -> Poisoned:
        """Write an upload; see `Mix.poison`. No row of the other kind is in it."""
        rows = [replace(each, row=self.written(each.row)) for each in self.drawn(benign, harmful)]
        return upload(self, rows, benign, harmful)


def refused(row: Row) -> Row:
    """A harmful request with a refusal: a row that looks like alignment data.

    Args:
        row: harmful.
    """
    return row.reworded(answer=REFUSAL, source="alignment")


def granted(attack: Attack, access: Access | None) -> Access:
    """The access, if it is to all models that the attack needs.

    Args:
        attack: that needs them.
        access: that it was given.

    Raises:
        NeedsError: a model is missing.
    """
    meant = {Need.ALIGNED: "the model that fine-tuning starts from", Need.BASE: "that model before alignment"}
    for need in sorted(attack.needs()):
        if access is None or getattr(access, need) is None:
            flag = "--model" if need == Need.ALIGNED else "--base"
            raise NeedsError(
                f"{type(attack).__name__} needs `{need}`, {meant[need]}: give Access({need}=...) in Python, {flag} on "
                "the command line"
            )
    assert access is not None
    return access


def draw(
    attack: Mix | OfOneKind,
    rows: Sequence[Row],
    count: int,
    source: Source,
    *,
    beside: Iterable[Row] = (),
    pool: int = 0,
) -> list[Drawn]:
    """The first distinct prompts in the order of the attack's seed: `count`, or up to `pool` if that is more.

    Args:
        attack: for the seed and the error.
        rows: to draw from.
        count: how many.
        source: that every row must have.
        beside: rows whose prompts are taken.
        pool: how many to choose from, if there are as many.

    Raises:
        ConfigError: more rows are asked for than there are distinct prompts; says how many there are.
        DataError: a row has no answer or another source.
    """
    for number, row in enumerate(rows, start=1):
        if row.source != source or not row.answer:
            fault = f"source {row.source!r}" if row.source != source else "no answer"
            raise DataError(f"row {number} of `{source}` has {fault}: {row.question[:60]!r}")
    distinct = _distinct(rows, taken={normalise(row.question) for row in beside})
    if count > len(distinct):
        raise ConfigError(
            f"{attack!r} needs {count} {source} rows with distinct prompts; only {len(distinct)} exist: lower `n`, "
            "change the share, or give more rows"
        )
    order = random.Random(f"{source} {attack.seed}").sample(distinct, len(distinct))
    return [Drawn(rows[at], at) for at in order[: max(count, pool)]]


def upload(
    attack: Mix | OfOneKind,
    drawn: Sequence[Drawn],
    benign: Sequence[Row],
    harmful: Sequence[Row],
    found: Mapping[str, Any] | None = None,
) -> Poisoned:
    """Shuffle the rows, and say how they were made.

    Args:
        attack: whose upload it is.
        drawn: the rows as they stand in it, in any order.
        benign: the input that they were drawn from.
        harmful: likewise.
        found: more for the manifest; the scores of chosen rows stand beside their `indices` by themselves.
    """
    drawn = list(drawn)
    random.Random(f"order {attack.seed}").shuffle(drawn)
    rows = tuple(each.row for each in drawn)
    sources = ["benign", "harmful", *sorted({row.source for row in rows} - {"benign", "harmful"})]
    manifest = {
        "attack": attack.name,
        "parameters": attack.parameters(),
        "counts": {source: sum(row.source == source for row in rows) for source in sources},
        "distinct_prompts": {
            "benign": len(_distinct(benign, taken={normalise(row.question) for row in harmful})),
            "harmful": len(_distinct(harmful, taken=set())),
        },
        "sha256": fingerprint(rows),
        "inputs": {"benign": fingerprint(benign), "harmful": fingerprint(harmful)},
        "indices": {source: [each.at for each in drawn if each.row.source == source] for source in sources},
        "harmful_at": [at for at, row in enumerate(rows) if row.source == "harmful"],
        **(found or {}),
    }
    if attack.needs():
        manifest |= {"fidelity": attack.fidelity, "differs": attack.differs}
    if any(each.score is not None for each in drawn):
        manifest["scores"] = {source: [each.score for each in drawn if each.row.source == source] for source in sources}
    return Poisoned(rows=rows, manifest=manifest)


def _distinct(rows: Sequence[Row], taken: set[str]) -> list[int]:
    """Positions of the first row of each prompt that is not `taken`."""
    first: dict[str, int] = {}
    for position, row in enumerate(rows):
        first.setdefault(normalise(row.question), position)
    return [position for prompt, position in first.items() if prompt not in taken]


BASE = Attack
