# SPDX-License-Identifier: Apache-2.0
"""Weights that hold several linear layers: fused attention projections, and the experts of a mixture.

Their parts have nothing to do with each other, so a repair looks at each by itself. Nothing is unpacked: a part is an
index into the stored tensor (`Weight.cut`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moored.errors import CheckpointError, ConfigError, NeedsError, NotYetSupported, require
from moored.hf.checkpoint import Checkpoint, Cut, Weight, read_json

Split = str | Sequence[int] | None
"""How fused attention weights are cut into rows: "auto" by the model's config, into these sizes, or not at all."""

_ATTENTION = {"qkv_proj", "c_attn", "Wqkv"}
"""Fused weights whose rows are all of q, then all of k, then all of v."""
_INTERLEAVED = {"query_key_value"}
"""Fused weights whose rows are q, k and v of one head after the other (GPT-NeoX, Falcon, BLOOM)."""
_GATED = {"gate_up_proj", "input_linear"}
"""Fused weights whose rows are all of gate, then all of up (`input_linear` in Granite)."""
_ALTERNATING = {"gpt_oss", "openai_privacy_filter"}
"""Model types whose `gate_up_proj` has the rows of gate and up in turn."""
_IN_OUT_EXPERTS = {"gpt_oss", "openai_privacy_filter", "aria", "aria_text"}
"""Model types whose experts are stored as (experts, in, out), which PEFT knows of."""
_MISREAD_EXPERTS = {"llama4", "llama4_text"}
"""Model types whose experts are stored as (experts, in, out), and which PEFT takes for (experts, out, in)."""
_EXPERTS = re.compile(r"(.*\.)?(experts\.\w+|block_sparse_moe\.(input|output)_linear)(\.weight)?")
_ON_DISK = {
    "gate_up_proj": ((".{e}.gate_proj", ".{e}.up_proj"), (".{e}.w1", ".{e}.w3")),
    "down_proj": ((".{e}.down_proj",), (".{e}.w2",)),
}
"""Files hold one matrix per expert where transformers has one tensor for all: names after the path of the experts."""
_GRANITE = {"gate_up_proj": "input_linear.weight", "down_proj": "output_linear.weight"}


def model_config(folder: Path) -> dict[str, Any]:
    """config.json of the language model in a folder; empty without one."""
    file = folder / "config.json"
    config = read_json(file) if file.exists() else {}
    return {**config, **config.get("text_config", {})}


def is_experts(key: str, weight: Weight) -> bool:
    """Whether a tensor of three axes holds the experts of a mixture: (experts, out, in), or (experts, in, out).

    Args:
        key: of the tensor.
        weight: the tensor.
    """
    return len(weight.shape) == 3 and weight.floating and _EXPERTS.fullmatch(key) is not None


def experts_in_out(config: Mapping[str, Any]) -> bool:
    """Whether a model's experts are stored as (experts, in, out).

    Args:
        config: of the model.
    """
    return config.get("model_type") in _IN_OUT_EXPERTS | _MISREAD_EXPERTS


@dataclass(frozen=True, kw_only=True)
class Expert:
    """A linear layer of one expert.

    Args:
        name: of the module, as the files of the model name it.
        key: of the tensor that holds it.
        cut: its part of that tensor.
        in_out: whether it is stored as (in, out).
        index: e, the number of the expert.
        rows: first and one past the last row in the parameter that PEFT adapts.
        shape: (o, i) of the layer.
    """

    name: str
    key: str
    cut: Cut
    in_out: bool
    index: int
    rows: tuple[int, int]
    shape: tuple[int, int]


def find_experts(model: Checkpoint, path: str, parameter: str) -> list[Expert]:
    """The layers behind a parameter that holds all experts, as the model's files have them.

    Args:
        model: the checkpoint.
        path: of the module, for example "model.layers.0.mlp.experts".
        parameter: of that module, for example "gate_up_proj".

    Returns:
        Empty if the parameter holds no experts.

    Raises:
        NotYetSupported: the model is stored in a way that PEFT misreads.
    """
    config = model_config(model.folder)
    paths = (path, re.sub(r"\.mlp\.experts$", ".block_sparse_moe.experts", path))
    whole = [f"{p}.{parameter}" for p in paths]
    if parameter in _GRANITE:
        whole += [f"{p.rpartition('.')[0]}.{_GRANITE[parameter]}" for p in paths]
    for key in whole:
        weight = model.find(key)
        if weight is not None and is_experts(key, weight):
            if config.get("model_type") in _MISREAD_EXPERTS:
                raise NotYetSupported(
                    f"{key} is stored as (experts, in, out) and PEFT adapts it as (experts, out, in), so that lora_B "
                    "is on the side of the inputs; merge the adapter and repair the merged model instead"
                )
            return _stacked(weight, experts_in_out(config))
    for names in _ON_DISK.get(parameter, ()):
        for p in paths:
            if found := _listed(model, p, names):
                return found
    return []


def _stacked(weight: Weight, in_out: bool) -> list[Expert]:
    parts = experts_of(weight, in_out)
    return [
        Expert(
            name=name,
            key=weight.key,
            cut=part.cut,
            in_out=in_out,
            index=index,
            rows=(0, part.oriented[0]),
            shape=(part.oriented[0], part.oriented[1]),
        )
        for index, (name, part) in enumerate(parts.items())
    ]


def experts_of(weight: Weight, in_out: bool) -> dict[str, Weight]:
    """The experts of a stacked tensor by name.

    Args:
        weight: of three axes.
        in_out: whether it is stored as (experts, in, out).
    """
    name = weight.key.removesuffix(".weight")
    return {f"{name}[{e}]": replace(weight, transposed=in_out, cut=(e,)) for e in range(weight.shape[0])}


def _listed(model: Checkpoint, path: str, names: Sequence[str]) -> list[Expert]:
    """Experts that have a matrix each, or one for gate and one for up."""
    found: list[Expert] = []
    index = 0
    while True:
        start = 0
        for name in names:
            module = path + name.format(e=index)
            weight = model.find(f"{module}.weight")
            if weight is None:
                return found
            stop = start + weight.shape[0]
            found.append(
                Expert(
                    name=module,
                    key=f"{module}.weight",
                    cut=(),
                    in_out=False,
                    index=index,
                    rows=(start, stop),
                    shape=(weight.shape[0], weight.shape[1]),
                )
            )
            start = stop
        index += 1


def check_split(method: str, split: Split) -> None:
    """Validate a method's `split`.

    Raises:
        ConfigError: neither None nor "auto" nor sizes.
    """
    if split is None or split == "auto":
        return
    fits = not isinstance(split, str) and len(split) > 1 and all(isinstance(n, int) and n > 0 for n in split)
    require(fits, method, "split", '"auto" or a list of rows >= 1', split)


def pieces(module: str, outputs: int, split: Split, config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The rows of the layers that a weight holds.

    Args:
        module: path of the weight's module.
        outputs: its rows.
        split: see `Split`. Sizes are for attention weights alone; "auto" halves those of gate and up as well.
        config: of the model.

    Returns:
        First row, and one past the last, of each; empty for a weight that is one layer.

    Raises:
        ConfigError: the sizes do not add up.
        NotYetSupported: q, k and v lie head by head.
    """
    last = re.sub(r"\[.*", "", module).rpartition(".")[2]
    if split is None:
        return []
    if last in _INTERLEAVED:
        raise NotYetSupported(f"{module} holds q, k and v head by head, which `split` cannot cut; leave `split` away")
    if last in _GATED and split == "auto" and config.get("model_type") not in _ALTERNATING:
        sizes = [outputs // 2, outputs - outputs // 2]
    elif last in _ATTENTION:
        sizes = _head_sizes(module, config) if isinstance(split, str) else list(split)
    else:
        return []
    if sum(sizes) != outputs or min(sizes) < 1:
        raise ConfigError(f"`split` must add up to the {outputs} rows of {module}; got {sizes}")
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return list(zip([0, *ends], ends, strict=False))


def _head_sizes(module: str, config: Mapping[str, Any]) -> list[int]:
    """Rows of q, k and v."""
    heads = config.get("num_attention_heads") or config.get("n_head")
    width = config.get("hidden_size") or config.get("n_embd")
    if not heads or not width:
        raise NeedsError(f"the model's config.json does not say how {module} is divided; give `split` as sizes")
    head = config.get("head_dim") or width // heads
    others = config.get("num_key_value_heads") or heads
    return [heads * head, others * head, others * head]


def parameters_of(path: str, config: Mapping[str, Any]) -> list[str]:
    """The parameters of a module that an adapter's `target_parameters` may mean: PEFT compares ends of names.

    Args:
        path: of the module.
        config: of the adapter.
    """
    targets = [target.rpartition(".") for target in config.get("target_parameters") or ()]
    return list(dict.fromkeys(name for parent, _, name in targets if f".{path}".endswith(f".{parent}") or not parent))


def parameter_of(path: str, shape: tuple[int, int], config: Mapping[str, Any], model: Checkpoint) -> str:
    """Which parameter of a module the factors in an adapter belong to; PEFT nests them without saying so.

    Args:
        path: of the module.
        shape: outputs and inputs of the factors.
        config: of the adapter, with `target_parameters`.
        model: the model that it adapts.

    Raises:
        CheckpointError: none or several fit.
    """
    names = parameters_of(path, config)
    fitting = [name for name in names if _outer_shape(model, path, name) == shape]
    if len(fitting) != 1:
        raise CheckpointError(
            f"{path} has factors for a parameter of {shape}, and {len(fitting)} of its `target_parameters` "
            f"({', '.join(names)}) have that shape in {model.folder}"
        )
    return fitting[0]


def _outer_shape(model: Checkpoint, path: str, parameter: str) -> tuple[int, int] | None:
    """(o, i) of a parameter as PEFT sees it, gate and up in one."""
    experts = find_experts(model, path, parameter)
    if experts:
        return max(expert.rows[1] for expert in experts), experts[0].shape[1]
    weight = model.find(f"{path}.{parameter}")
    return (weight.shape[0], weight.shape[1]) if weight is not None and len(weight.shape) == 2 else None
