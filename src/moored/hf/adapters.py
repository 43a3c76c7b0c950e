# SPDX-License-Identifier: Apache-2.0
"""PEFT LoRA adapters on disk: read the factors with their scales, write them back, refuse where B A is not the update.

PEFT itself is not imported: a folder holds all that is needed, and a repair should start in less than a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from moored.errors import CheckpointError, NeedsError, NeverSupported, NotYetSupported
from moored.hf.checkpoint import Checkpoint, Cut, Weight, finite, local_folder, read_json, rows_of, weights_of
from moored.hf.fused import find_experts, parameter_of, parameters_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_MAGNITUDE = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_magnitude_vector(\.weight)?")
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Initialisations that leave the base weights as they are, so that s B A is the whole update."""
_MOVED_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations that change the base weights: the adapter is relative to weights that are on no disk."""
_VARIANTS = {
    "layer_replication": "it repeats layers, so that a module has no single weight",
    "lora_bias": "its update has a bias beside B A",
    "use_qalora": "its input is pooled before A",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "it changes the base weights and puts singular values between B and A",
    "monteclora_config": "its factors are random",
    "arrow_config": "it routes between several adapters",
}
_EMBEDDING_FACTORS = ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True, kw_only=True)
class AdapterModule:
    """The factors of one module, not yet read.

    Args:
        name: full path in the base model, for example "model.layers.0.self_attn.q_proj".
        a: lora_A, (r, i).
        b: lora_B, (o, r).
        scale: s in W + s B A: alpha / r, or alpha / sqrt(r) with rsLoRA.
        magnitude: m of DoRA, one number per row of the weight; None for LoRA.
        key: of the model's tensor that is adapted.
        cut: the part of that tensor.
        in_out: whether the tensor is stored as (in, out).
    """

    name: str
    a: Weight
    b: Weight
    scale: float
    magnitude: Weight | None = None
    key: str
    cut: Cut = ()
    in_out: bool = False

    @property
    def rank(self) -> int:
        """Rank r."""
        return self.a.oriented[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i) of the weight that is adapted."""
        return self.b.oriented[0], self.a.oriented[1]

    def within(self, model: Checkpoint | None) -> Weight | None:
        """The weight that is adapted, unread; None if there is no such model or no such weight.

        Args:
            model: the model.
        """
        weight = None if model is None else model.find(self.key)
        return None if weight is None else replace(weight, transposed=self.in_out, cut=self.cut)

    def rows(self, start: int, stop: int) -> AdapterModule:
        """Some outputs of the module as a module.

        Args:
            start: the first.
            stop: one past the last.
        """
        m = self.magnitude
        return replace(
            self,
            name=f"{self.name}[{start}:{stop}]",
            b=replace(self.b, cut=rows_of(self.b.cut, False, start, stop)),
            magnitude=None if m is None else replace(m, cut=(slice(start, stop),)),
            cut=rows_of(self.cut, self.in_out, start, stop),
        )

    def factors(self) -> tuple[Float[Tensor, "o r"], Float[Tensor, "r i"]]:
        """B and A as stored.

        Raises:
            CheckpointError: NaN or infinite values.
        """
        return finite(self.b), finite(self.a)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter folder.

    Args:
        folder: where it is.
        config: adapter_config.json.
        modules: by full module path, in file order.
        shapes: of the tensors that the model must have, by their keys.
        untouched: trained tensors that are no LoRA factor of a linear layer: modules_to_save, biases, embeddings.
    """

    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    modules: Mapping[str, AdapterModule] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    untouched: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """Config and weights."""
        return [self.folder / CONFIG, self.folder / WEIGHTS]

    @property
    def separate(self) -> bool:
        """Whether every module has factors of its own in the file; experts and parts of fused weights share them."""
        return not any(module.a.cut or module.b.cut for module in self.modules.values())

    @property
    def base_name(self) -> str:
        """The model that the adapter says it was trained on."""
        return _named(self.config)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter rather than a model."""
    return (folder / CONFIG).exists()


def named_base(folder: Path) -> str:
    """The model that an adapter says it is on; "" if it names none, or the folder holds no adapter.

    Args:
        folder: any.

    Raises:
        CheckpointError: the adapter's configuration is no JSON object.
    """
    return _named(read_json(folder / CONFIG)) if is_adapter(folder) else ""


def _named(config: Mapping[str, Any]) -> str:
    return str(config.get("base_model_name_or_path") or "")


def read_adapter(where: str | Path, *, merge: bool = False, aligned: Checkpoint | None = None) -> Adapter:
    """Open a PEFT LoRA adapter; tensors are read later, one module at a time.

    Args:
        where: the folder with adapter_config.json and adapter_model.safetensors, or a hub id.
        merge: the update is going to be a matrix, so DoRA's can be had too.
        aligned: the model that it adapts, which says what the experts of a mixture are.

    Raises:
        CheckpointError: a file is missing or broken, or the factors do not fit each other or the config.
        NeverSupported: a kind of adapter where B A is not the update.
        NotYetSupported: a kind of adapter that is not handled.
        NeedsError: experts without `aligned`.
    """
    folder = local_folder(where)
    config = read_json(folder / CONFIG)
    _check_kind(config, folder, merge)
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise CheckpointError(f"{folder} holds a pickled adapter_model.bin; load it with PEFT and save it again")
    weights = weights_of(folder / WEIGHTS)
    factors, untouched = _sort(weights, folder, merge, bool(config.get("target_parameters")))
    modules: dict[str, AdapterModule] = {}
    for name, sides in factors.items():
        found = _parameter(name, sides, config, aligned) if config.get("target_parameters") else []
        for module in found or [_module(name, sides, config)]:
            modules[module.name] = module
    if not modules:
        raise CheckpointError(f"{folder / WEIGHTS} holds no LoRA factors of linear layers; there is nothing to repair")
    shapes: dict[str, tuple[int, ...]] = {}
    for module in modules.values():
        expert = module.within(aligned) if module.cut else None
        own = module.shape[::-1] if module.in_out else module.shape
        shapes[module.key] = own if expert is None else expert.shape
    return Adapter(folder=folder, config=config, modules=modules, shapes=shapes, untouched=tuple(untouched))


def _check_kind(config: Mapping[str, Any], folder: Path, merge: bool) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise NotYetSupported(f"{folder} is a {kind} adapter; only LORA is handled")
    if config.get("use_dora") and not merge:
        raise NeverSupported(_dora(folder))
    if config.get("alora_invocation_tokens") is not None:
        raise NeverSupported(f"{folder} is an activated LoRA: it acts on some tokens only, which no weight can carry")
    for name, reason in _VARIANTS.items():
        if config.get(name):
            raise NotYetSupported(f"{folder} uses `{name}`: {reason}; merge it and repair the merged model instead")
    init = config.get("init_lora_weights")
    init = init.lower() if isinstance(init, str) else init
    if isinstance(init, str) and init.startswith(_MOVED_INITS):
        raise NotYetSupported(
            f"{folder} was initialised with {init!r}, which changes the base weights; save it with PEFT's "
            "`path_initial_model_for_weight_conversion` and repair that adapter"
        )
    if init not in _PLAIN_INITS:
        raise NotYetSupported(f"{folder} was initialised with {init!r}, which is untested")


def _dora(folder: Path) -> str:
    return (
        f"{folder} is a DoRA adapter: its update is not B A but rescales the weights; with `merge=True` (--merge) the "
        "output is a full model, and it can be repaired"
    )


def _sort(
    weights: Mapping[str, Weight], folder: Path, merge: bool, targets: bool
) -> tuple[dict[str, dict[str, Weight]], list[str]]:
    """Factors (and DoRA's magnitudes) by module and side, and the names of all other tensors."""
    factors: dict[str, dict[str, Weight]] = {}
    untouched = []
    for key, weight in weights.items():
        if (magnitude := _MAGNITUDE.fullmatch(key)) and merge:
            factors.setdefault(magnitude["module"], {})["m"] = weight
            continue
        if magnitude:
            raise NeverSupported(_dora(folder))
        match = _FACTOR.fullmatch(key)
        if match and "base_layer" in match["module"].split(".") and not targets:
            raise NotYetSupported(f"{key} adapts a bare parameter, which the config does not name")
        if match:
            factors.setdefault(match["module"], {})[match["side"]] = weight
        elif "lora_" in key and not any(name in key for name in _EMBEDDING_FACTORS):
            raise NotYetSupported(f"{key} in {folder} is a kind of LoRA tensor that is not handled")
        else:
            untouched.append(key)
    return factors, untouched


def _module(name: str, sides: Mapping[str, Weight], config: Mapping[str, Any]) -> AdapterModule:
    if not {"A", "B"} <= sides.keys():
        raise CheckpointError(f"{name} has only lora_{min(sides)}; the adapter file is incomplete")
    a, b = sides["A"], sides["B"]
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise NotYetSupported(f"{name} has factors {b.shape} and {a.shape}; only linear layers can be repaired")
    rank, scale = _scale(name, config)
    if a.shape[0] != b.shape[1] or a.shape[0] != rank:
        raise CheckpointError(f"{name} has factors {b.shape} and {a.shape}, but the config says rank {rank}")
    return AdapterModule(
        name=name,
        a=a,
        b=b,
        scale=scale,
        magnitude=sides.get("m"),
        key=f"{name}.weight",
        in_out=bool(config.get("fan_in_fan_out")),
    )


def _scale(name: str, config: Mapping[str, Any]) -> tuple[int, float]:
    """R and s of a module."""
    rank = _by_pattern(config.get("rank_pattern"), name, config.get("r", 8))
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _parameter(
    name: str, sides: Mapping[str, Weight], config: Mapping[str, Any], aligned: Checkpoint | None
) -> list[AdapterModule]:
    """The experts behind a parameter that PEFT's `target_parameters` adapts; empty for an ordinary module.

    PEFT keeps A as E blocks of r rows, and B as r blocks of E columns: expert e has rows e r to (e + 1) r and every
    E-th column from e on.
    """
    path = name.replace(".base_layer", "")
    if not parameters_of(path, config):
        return []
    if aligned is None:
        raise NeedsError(f"{path} has parameters of its own that are adapted (experts): give `aligned`, which has them")
    if not {"A", "B"} <= sides.keys():
        raise CheckpointError(f"{name} has only lora_{min(sides)}; the adapter file is incomplete")
    a, b = sides["A"], sides["B"]
    parameter = parameter_of(path, (b.shape[0], a.shape[1]), config, aligned)
    experts = find_experts(aligned, path, parameter)
    rank, scale = _scale(f"{path}.{parameter}", config)
    count = 1 + max((expert.index for expert in experts), default=0)
    if not a.shape[0] == b.shape[1] == rank * count:
        shapes = f"{b.shape} and {a.shape}"
        raise CheckpointError(f"{name} has factors {shapes} for {count} experts, but the config says rank {rank}")
    if not experts:
        if parameter != "weight":
            raise NotYetSupported(f"{path}.{parameter} is a bare parameter; only linear layers can be repaired")
        return [AdapterModule(name=path, a=a, b=b, scale=scale, key=f"{path}.weight")]
    return [
        AdapterModule(
            name=expert.name,
            a=replace(a, cut=(slice(expert.index * rank, (expert.index + 1) * rank),)),
            b=replace(b, cut=(slice(*expert.rows), slice(expert.index, None, count))),
            scale=scale,
            key=expert.key,
            cut=expert.cut,
            in_out=expert.in_out,
        )
        for expert in experts
    ]


def grown(adapter: Adapter, new: Mapping[str, Float[Tensor, "..."]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter's configuration and factors with other ranks; every module keeps its scale.

    All modules get the greatest rank, the others filled up with zeros: programs that serve adapters (vLLM) read one
    `r` and one `lora_alpha`. Where the modules have scales of their own already, these stay in `alpha_pattern`.
    Factors of embeddings, which no repair edits, keep their rank by a pattern.

    Args:
        adapter: as it was.
        new: factors of other ranks, by their keys.

    Returns:
        adapter_config.json; the factors that differ from those in the file, by their keys.
    """
    rank = max(
        module.rank if module.a.key not in new else new[module.a.key].shape[0] for module in adapter.modules.values()
    )
    factors = {}
    for module in adapter.modules.values():
        b, a = (new[w.key] if w.key in new else finite(w) for w in (module.b, module.a))
        factors[module.b.key] = pad(b, (0, rank - b.shape[1]))
        factors[module.a.key] = pad(a, (0, 0, 0, rank - a.shape[0]))
    root = math.sqrt(rank) if adapter.config.get("use_rslora") else rank
    alphas = {name: module.scale * root for name, module in adapter.modules.items()}
    config = {**adapter.config, "r": rank, "rank_pattern": {}}
    if len(set(alphas.values())) == 1:
        config |= {"lora_alpha": _whole(next(iter(alphas.values()))), "alpha_pattern": {}}
    else:
        config |= {"alpha_pattern": {re.escape(name): _whole(alpha) for name, alpha in alphas.items()}}
    for name in _embeddings(adapter):
        own, before = re.escape(name), adapter.config
        config["rank_pattern"] |= {own: _scale(name, before)[0]}
        alpha = _by_pattern(before.get("alpha_pattern"), name, before.get("lora_alpha", 8))
        config["alpha_pattern"] = {own: alpha, **config["alpha_pattern"]}
    return config, factors


def _embeddings(adapter: Adapter) -> list[str]:
    """Modules with factors of an embedding."""
    end = ".lora_embedding_A"
    return [key.removeprefix("base_model.model.").removesuffix(end) for key in adapter.untouched if key.endswith(end)]


def _whole(alpha: float) -> float | int:
    """As an integer where it is one: vLLM and older PEFT expect that."""
    return int(alpha) if alpha == int(alpha) else alpha


def _by_pattern(pattern: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's rule: the first key that, as a regular expression, matches the end of the path after a dot."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default
