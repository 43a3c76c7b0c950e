# SPDX-License-Identifier: Apache-2.0
"""What vLLM does not load of PEFT adapters: the checks of its release 0.33.0, without vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moored.hf.adapters import CONFIG, WEIGHTS, is_adapter
from moored.hf.checkpoint import read_json, weights_of

RELEASE = "0.33.0"
"""Whose code was read, and run on repaired adapters."""

RANK, LARGEST = 16, 512
"""`--max-lora-rank` if nothing is said, and the largest that there is."""

CLASSIFIERS = {"classifier", "score"}
"""Modules that an adapter may hold as a whole."""

PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
"""Named ways to begin a training after which B A is the update; others change the model itself."""

FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")

PASSED_OVER = (
    ".embed_tokens.base_layer.weight",
    ".lm_head.base_layer.weight",
    *(f".{name}.{part}" for name in sorted(CLASSIFIERS) for part in ("weight", "bias")),
)
"""Other tensors that vLLM skips, or takes as a whole."""

FEATURES = {
    "use_dora": "it is a DoRA adapter",
    "lora_bias": "its factors have biases (`lora_bias`)",
    "alora_invocation_tokens": "it is an activated LoRA",
    "layer_replication": "it replicates layers",
    "use_bdlora": "its factors are block-diagonal",
    "use_qalora": "it is a QALoRA adapter",
}


def remark(folder: Path) -> str:
    """Why vLLM does not load an adapter, or what it must be started with; "" of a full model, or if nothing is to say.

    Args:
        folder: of an adapter or of a model, with safetensors.

    Raises:
        CheckpointError: the adapter's files are broken.
    """
    if not is_adapter(folder):
        return ""
    config = read_json(folder / CONFIG)
    if reasons := _features(config) or _strangers(folder):
        return (
            f"vLLM {RELEASE} does not load this adapter: {'; '.join(reasons)}. Merged into the model (--merge) it is "
            "served like any other"
        )
    rank = max([int(config["r"]), *(config.get("rank_pattern") or {}).values()])
    if rank > LARGEST:
        return f"vLLM {RELEASE} does not load this adapter: its rank is {rank}, and {LARGEST} is the most (--merge)"
    return f"vLLM loads adapters of this rank with `--max-lora-rank {_offered(rank)}`" if rank > RANK else ""


def _features(config: Mapping[str, Any]) -> list[str]:
    said = [words for name, words in FEATURES.items() if config.get(name)]
    whole = sorted(set(config.get("modules_to_save") or ()) - CLASSIFIERS)
    if whole:
        said.append(f"it holds {', '.join(f'`{name}`' for name in whole)} as a whole (`modules_to_save`)")
    if config.get("bias", "none") != "none":
        said.append(f"it holds biases (`bias: {config['bias']}`)")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        said.append(f"it was begun with `{init}`, which changes the model itself")
    return said


def _strangers(folder: Path) -> list[str]:
    """Tensors that are no factors, although the configuration names none: vLLM knows them not."""
    strange = [key for key in weights_of(folder / WEIGHTS) if not key.endswith((*FACTORS, *PASSED_OVER))]
    return [f"it holds `{strange[0]}`, which is no factor"] if strange else []


def _offered(rank: int) -> int:
    """The smallest setting of vLLM that holds a rank."""
    return next(size for size in (1, 8, 16, 32, 64, 128, 256, 320, 512) if size >= rank)
