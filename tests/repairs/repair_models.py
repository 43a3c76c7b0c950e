# SPDX-License-Identifier: Apache-2.0
"""Tiny model folders and adapters made by plain PEFT, and readers that use no code of ours."""

import hashlib
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from moored.data.tiny import tiny_model, tiny_tokenizer

DENSE = ["q_proj", "v_proj", "up_proj", "down_proj"]


def noise_(model, size, seed):
    """Add noise to every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * size)
    return model


def save_pair(root: Path, *, arch="llama", shards=None, dtype=torch.float32, **config):
    """Base and aligned folders."""
    model = tiny_model(arch, **config)
    size = {"max_shard_size": shards} if shards else {}
    model.to(dtype).save_pretrained(root / "base", **size)
    noise_(model.float(), 0.01, 7).to(dtype).save_pretrained(root / "aligned", **size)
    tiny_tokenizer().save_pretrained(root / "aligned")
    return root / "aligned", root / "base"


def save_adapter(aligned: Path, out: Path, *, size=0.05, seed=3, **config):
    """What PEFT saves after a training run, with random factors instead of the training."""
    model = AutoModelForCausalLM.from_pretrained(aligned)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": DENSE, **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    peft.save_pretrained(out)
    return out


def factors(folder: Path):
    """lora_A and lora_B by module, read without any code of ours."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in tensors if ".lora_A." in key}
    prefix = "base_model.model."
    return {n: (tensors[f"{prefix}{n}.lora_A.weight"], tensors[f"{prefix}{n}.lora_B.weight"]) for n in names}


def weights(folder: Path):
    """All tensors of a checkpoint."""
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


def digests(*folders: Path):
    """sha256 of every file."""
    files = [f for folder in folders for f in sorted(folder.rglob("*")) if f.is_file()]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
