# SPDX-License-Identifier: Apache-2.0
"""Recipes: a whole study in one YAML file, checked before anything runs.

::

    Recipe ── a line       model → align → attack → finetune → repairs, and the tasks that judge the end of it
                          (`upload`, rows as they are, in place of attack; `oracle` in place of attack and finetune)
           ── arms         named changes to that line (merge patches, RFC 7396: null removes a key)
           ── attacks      named changes to that line too; every arm runs under each of them
           ── grid         values for any field, by dotted path; every arm runs at every point
           ── profiles     named changes to the whole recipe, for example `tiny`
           ── expect       promises made beforehand, reported as met or missed
           ── reported     published numbers to stand beside the measured ones
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    ValidationError,
    model_validator,
)

from moored.errors import ConfigError, unknown
from moored.report.record import Expectation, Reported
from moored.study.patch import assign, leads, merge
from moored.study.text import parse_value, read_mapping

M = TypeVar("M", bound=BaseModel)


class Part(BaseModel):
    """Base of every part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Data(Part):
    """Rows by address."""

    data: str = Field(min_length=1, description="`synthetic:<set>`, a .jsonl/.json/.csv file, or a hub id")
    limit: int | None = Field(default=None, ge=1, description="rows to draw, seeded by `seed`; null = all")


def _address(value: Any) -> Any:
    return {"data": value} if isinstance(value, str) else value


Data = Annotated[_Data, BeforeValidator(_address, json_schema_input_type=str | _Data)]
"""Rows by address: a string, or `{data: ..., limit: ...}`."""


def _nothing(value: Any) -> Any:
    return {} if value is None else value


Named = dict[str, Annotated[dict[str, Any], BeforeValidator(_nothing, json_schema_input_type=dict[str, Any] | None)]]
"""Mappings by name; `name:` with nothing behind it is an empty one."""


class Method(RootModel[dict[str, dict[str, Any]]]):
    """A method by name with its own parameters: `lisa`, or `lisa: {rho: 1.0}`."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):
            if len(value) != 1:
                raise ValueError(f"one method per entry, for example `- lisa: {{rho: 1.0}}`; got {', '.join(value)}")
            return {name: {} if parameters is None else parameters for name, parameters in value.items()}
        return value

    @property
    def name(self) -> str:
        """The method's name in its catalogue."""
        return next(iter(self.root))

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's own parameters."""
        return self.root[self.name]


class TrainingSpec(Part):
    """How one training run goes; the fields of `moored.hf.train.Training` but for the seed."""

    steps: int | None = Field(default=None, ge=1, description="optimizer steps; give `steps` or `epochs`")
    epochs: float | None = Field(default=None, gt=0, description="passes over the rows; give `steps` or `epochs`")
    batch: int = Field(default=8, ge=1, description="rows per micro-batch")
    accumulate: int = Field(default=1, ge=1, description="micro-batches per optimizer step")
    lr: float = Field(default=2e-4, gt=0, description="peak learning rate of AdamW")
    rank: int = Field(default=8, ge=1, description="LoRA rank r")
    alpha: int = Field(default=16, ge=1, description="LoRA alpha; the update is scaled by alpha / r")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="LoRA dropout, 0-1")
    targets: Literal["all-linear", "attention"] | tuple[str, ...] = Field(
        default="all-linear", description="modules that LoRA is put on: all linear ones, those of attention, or names"
    )
    max_length: int = Field(default=256, ge=8, description="longest row [tokens]; longer ones are cut")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="of the learning rate")
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of the steps with a rising learning rate, 0-1")
    full: bool = Field(default=False, description="train all weights instead of a LoRA adapter")
    pack: bool = Field(default=True, description="rows share lines instead of padding, where the model allows it")
    dtype: Literal["bfloat16", "float32"] | None = Field(
        default=None, description="compute precision; by default bfloat16 where the machine multiplies it fast"
    )
    save_every: int = Field(default=0, ge=0, description="steps between checkpoints for resume; 0 = none")

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSpec:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"exactly one of `steps` and `epochs`; got steps={self.steps}, epochs={self.epochs}")
        return self


class Align(Part):
    """The provider's safety alignment, merged into the weights."""

    data: tuple[Data, ...] = Field(min_length=1, description="training rows; alignment data and, say, a task's")
    training: TrainingSpec
    defenses: tuple[Method, ...] = Field(default=(), description="alignment-stage methods")
    roles: dict[str, Data] = Field(default={}, description="further data that the defences need, by role")


class Attack(Part):
    """The user's upload: benign rows, harmful rows, and the attack that mixes them as a key of its own."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, dict[str, Any]]

    benign: Data
    harmful: Data

    @model_validator(mode="after")
    def _one_method(self) -> Attack:
        named = list(self.__pydantic_extra__)
        if len(named) != 1:
            raise ValueError(
                "exactly one attack beside `benign` and `harmful`, for example "
                f"`harmful_mix: {{n: 480, ratio: 0.1}}`; got {', '.join(named) or 'none'}"
            )
        return self

    @property
    def method(self) -> Method:
        """The attack and its parameters."""
        return Method(dict(self.__pydantic_extra__))


class Evade(Part):
    """A penalty with which an attacker who runs the training keeps clear of Safe LoRA's gate; see `GateEvasion`."""

    tau: float = Field(default=0.35, ge=-1, le=1, description="cosine that the repair compares with")
    margin: float = Field(default=0.05, ge=0, description="how far above it to stay")
    mu: float = Field(default=10.0, ge=0, description="strength of the penalty")


class Dpo(Part):
    """Training on which of two answers is better (Direct Preference Optimization) in place of on one answer."""

    beta: float = Field(default=0.1, gt=0, description="how much the model is kept near its start; the paper: 0.1-0.5")


class Finetune(Part):
    """The user's fine-tuning on the upload."""

    training: TrainingSpec
    dpo: Dpo | None = Field(
        default=None, description="the upload, and the data of the defences, are preferences; null = they are rows"
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        description="of this training alone, where the start is shared; null = the line's",
    )
    defenses: tuple[Method, ...] = Field(default=(), description="fine-tuning-stage methods")
    roles: dict[str, Data] = Field(default={}, description="data that the defences need, by role")
    evade: Evade | None = Field(
        default=None, description="the trained oracle: the attacker runs the training too, against Safe LoRA's gate"
    )
    probe: Data | None = Field(default=None, description="rows on which hidden-embedding drift is watched; null = none")


class Oracle(Part):
    """Weights written straight against the alignment, in place of an upload and a fine-tuning on it."""

    norm: float = Field(default=1.0, gt=0, description="length of the update, in lengths of aligned - base")
    k: int = Field(default=8, ge=1, description="directions of aligned - base, and rank of the adapter")


class Twin(Part):
    """Another fine-tuning of the aligned model, on rows of the provider's own, that repairs compare with."""

    data: tuple[Data, ...] = Field(min_length=1, description="training rows")
    training: TrainingSpec


class RepairWith(Part):
    """What repairs may look at beside the tuned model and its start."""

    roles: dict[str, Data] = Field(default={}, description="data that the repairs need, by role")
    twins: dict[Literal["unaligned", "safe"], Twin] = Field(
        default={}, description="`unaligned`: the aligned model tuned on unsafe rows; `safe`: on safe ones"
    )


class Line(Part):
    """One way through the study: from a model to the judged end."""

    seed: int = Field(default=0, ge=0, description="of data draws, attack and training; evaluation rows stay")
    model: str = Field(min_length=1, description="`smollm2`, `tiny[:<arch>]`, a folder, or a hub id")
    base: str | None = Field(
        default=None, description="the model before alignment; needed by repairs when `align` is left out"
    )
    align: Align | None = Field(default=None, description="null = `model` is aligned already")
    attack: Attack | None = Field(default=None, description="what `finetune` trains on")
    upload: Data | None = Field(default=None, description="in place of `attack`: rows to train on as they are")
    finetune: Finetune | None = Field(default=None, description="null = judge the aligned model")
    oracle: Oracle | None = Field(
        default=None, description="in place of `attack` and `finetune`: an upper bound for what rows can do"
    )
    repairs: tuple[Method, ...] = Field(default=(), description="post-fine-tuning methods, in order")
    repair_with: RepairWith = Field(default=RepairWith(), description="what repairs may look at")
    tasks: Named = Field(min_length=1, description="tasks and their parameters")

    @model_validator(mode="after")
    def _complete(self) -> Line:
        if self.attack is not None and self.upload is not None:
            raise ValueError("`upload` stands in place of `attack`; set one of them to null")
        trains_on = "attack" if self.upload is None else "upload"
        if (getattr(self, trains_on) is None) != (self.finetune is None):
            missing = trains_on if self.finetune is not None else "finetune"
            raise ValueError(f"`{trains_on}` and `finetune` go together; `{missing}` is missing")
        if self.oracle is not None and self.finetune is not None:
            raise ValueError("`oracle` stands in place of `attack` and `finetune`; set both to null")
        if self.finetune is not None and self.finetune.dpo is not None:
            if self.upload is None:
                raise ValueError("`finetune.dpo` trains on preferences, which no `attack` writes; give an `upload`")
            if self.finetune.probe is not None:
                raise ValueError("`finetune.probe` watches a training on rows; set it to null beside `finetune.dpo`")
        if self.repairs and self.finetune is None and self.oracle is None:
            raise ValueError("`repairs` need `finetune` or `oracle`: there is nothing to repair")
        return self


class Recipe(Line):
    """A whole study. `Recipe.load` reads a file; `study.grid` spreads `arms` and `grid` into lines."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="file-name stem of the results")
    title: str = Field(default="", description="heading of the report")
    arms: Named = Field(
        default={"run": {}},
        min_length=1,
        description="changes to the line by arm; `title` and `note` describe it",
    )
    attacks: Named = Field(
        default={}, description="changes to the line by attack, before those of the arm; every arm runs under each"
    )
    grid: dict[str, tuple[Any, ...]] = Field(default={}, description="values by dotted path")
    profiles: Named = Field(default={}, description="changes to the recipe by profile")
    expect: tuple[Expectation, ...] = Field(
        default=(), description="promises by arm; `shipped` and `aligned` name the reference rows"
    )
    reported: tuple[Reported, ...] = Field(default=(), description="published numbers, with their source")

    @classmethod
    def load(
        cls,
        where: str | Path,
        *,
        sets: Sequence[str] = (),
        profile: str | Sequence[str] | None = None,
        arms: Sequence[str] = (),
    ) -> Recipe:
        """Read a recipe.

        Args:
            where: a YAML file, or the name of a packaged recipe such as `demo`.
            sets: changes such as `finetune.training.lr=1e-4`, values in YAML, applied after the profile.
            profile: one of the recipe's `profiles`, or several, each merged into what those before it made.
            arms: the arms to keep, with the expectations that are of these alone; () keeps all.

        Raises:
            ConfigError: no such file, not YAML (names the line), or a wrong key (lists the nearest names).
        """
        return cls.parse(read_mapping(_located(where)), sets=sets, profile=profile, arms=arms, what=str(where))

    @classmethod
    def parse(
        cls,
        tree: Mapping[str, Any],
        *,
        sets: Sequence[str] = (),
        profile: str | Sequence[str] | None = None,
        arms: Sequence[str] = (),
        what: str = "recipe",
    ) -> Recipe:
        """The recipe in plain values; see `load`."""
        recipe = validated(cls, tree, what)
        for name in [profile] if isinstance(profile, str) else profile or ():
            if name not in recipe.profiles:
                raise unknown("profile", name, recipe.profiles or ["(none)"])
            tree = merge(tree, recipe.profiles[name])
        for text in sets:
            path, value = _setting(text)
            tree = assign(tree, path, value, open_keys=open_keys(recipe.arms))
        whole = validated(cls, tree, what)
        return whole.only(arms) if arms else whole

    def only(self, arms: Sequence[str]) -> Recipe:
        """The recipe with some of its arms, in its own order, and the axes of its grid that lead into one of them.

        Raises:
            ConfigError: an arm that it does not have.
        """
        for name in arms:
            if name not in self.arms:
                raise unknown("arm", name, self.arms)
        left = set(self.arms) - set(arms)
        kept = {name: patch for name, patch in self.arms.items() if name in arms}
        idle = {path for path in self.grid if self._leads(path, self.arms) and not self._leads(path, kept)}
        return self.model_copy(
            update={
                "arms": kept,
                "grid": {path: values for path, values in self.grid.items() if path not in idle},
                "expect": tuple(e for e in self.expect if not {e.arm, e.against} & left),
            }
        )

    def _leads(self, path: str, arms: Mapping[str, Any]) -> bool:
        """Whether an axis leads somewhere in at least one of the arms."""
        return any(leads(merge(self.line(), patch), path, open_keys=open_keys()) for patch in arms.values())

    def line(self) -> dict[str, Any]:
        """The part of the recipe that arms change, as plain values without defaults."""
        tree = self.model_dump(mode="json", exclude_unset=True)
        return {key: tree[key] for key in Line.model_fields if key in tree}

    def plain(self) -> dict[str, Any]:
        """The recipe as plain JSON, defaults filled in."""
        return self.model_dump(mode="json")


def validated(model: type[M], tree: Mapping[str, Any], what: str) -> M:
    """`tree` as a `model`.

    Raises:
        ConfigError: the first thing that is wrong, in one sentence; an unknown key lists the nearest.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{what}: {_complaint(model, error)}") from error


def packaged() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("moored") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def open_keys(arms: Mapping[str, Any] = {}) -> dict[str, list[str]]:
    """Keys of every mapping with a fixed set of them, by dotted path; `arms` adds those of their lines."""
    keys = dict(_keys(Recipe, ""))
    for arm in arms:
        keys |= dict(_keys(Line, f"arms.{arm}"))
        keys[f"arms.{arm}"] += ["title", "note"]
    return keys


def _keys(model: type[BaseModel], path: str) -> Iterator[tuple[str, list[str]]]:
    """The keys of a model and of the models in it; an attack's method is a free key, so it is left out."""
    if model is not Attack:
        yield path, list(model.model_fields)
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None and inner is not _Data and not issubclass(inner, RootModel):
            yield from _keys(inner, f"{path}.{name}" if path else name)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds directly (possibly or None), else None."""
    options = [annotation, *(get_args(annotation) if type(None) in get_args(annotation) else ())]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _located(where: str | Path) -> Path:
    path = Path(where)
    known = packaged()
    if path.is_file() or str(where) not in known:
        if not path.is_file() and path.suffix not in (".yaml", ".yml"):
            raise unknown("recipe", str(where), known or ["(a YAML file)"])
        return path
    return known[str(where)]


def _setting(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {text!r} must look like `finetune.training.lr=1e-4`")
    return path.strip(), parse_value(value, f"--set {text}")


def _complaint(model: type[BaseModel], error: ValidationError) -> str:
    """The first complaint as a sentence; a misspelt key before the key that it should have been."""
    first = min(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    loc = [part for part in first["loc"] if isinstance(part, str | int)]
    where = ".".join(str(part) for part in loc)
    if first["type"] == "extra_forbidden":
        mapping = ".".join(where.split(".")[:-1])
        return str(unknown(f"key of `{mapping}`" if mapping else "key", str(loc[-1]), _fields_at(model, loc[:-1])))
    if first["type"] == "missing":
        return f"`{where}` is missing"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    given = first["input"]
    shown = f"; got {given!r}" if isinstance(given, str | int | float | bool | None) else ""
    return f"`{where}` {message}{shown}" if where else message + shown


def _fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys that the mapping at `loc` may have."""
    at: Any = model
    for part in loc:  # positions and names in a mapping lead to the model that the list or mapping holds
        if at is not None and part in at.model_fields:
            at = _inner(at.model_fields[part].annotation)
    return list(at.model_fields) if at is not None else []


def _inner(annotation: Any) -> Any:
    """The model inside an annotation such as `tuple[Data, ...]` or `Finetune | None`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_inner(argument) for argument in get_args(annotation))
    return next((model for model in found if isinstance(model, type) and issubclass(model, BaseModel)), None)
