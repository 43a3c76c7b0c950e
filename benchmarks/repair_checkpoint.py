# SPDX-License-Identifier: Apache-2.0
"""`moored.repair` with Safe LoRA on checkpoints of the shape of Llama-2-7B, made here and deleted afterwards.

    python benchmarks/repair_checkpoint.py [--layers 32] [--targets qv|all] [--cache warm|cold] [--folder DIR]

Two sharded bf16 checkpoints hold the target tensors of every layer, in real bytes; the adapter has r = 8. Prints the
wall time of the repair over that of reading these tensors once, in the same process and with the page cache in the same
state; the peak memory of the process; and the time and memory of the formula written with dense matrices, for one
4096 x 4096 and one 11008 x 4096 weight. Exits 1 when a threshold is missed. The one on reading is for files on a disk
(cold): out of the page cache, reading is copying memory, and nothing that hashes what it reads comes near that.
Needs idle cores, and disk for 0.14 GB (qv) or 0.81 GB (all) per layer.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safe_lora import dense, streamed, timed
from safetensors.torch import save_file

from moored.hf.checkpoint import Checkpoint
from moored.memory import forget_peak, peak_bytes
from moored.repairs.engine import repair
from moored.repairs.safe_lora import SafeLoRA

WIDE, LONG, RANK, PER_SHARD = 4096, 11008, 8, 4
ATTENTION = {"self_attn.q_proj": (WIDE, WIDE), "self_attn.v_proj": (WIDE, WIDE)}
EVERYTHING = {
    **ATTENTION,
    "self_attn.k_proj": (WIDE, WIDE),
    "self_attn.o_proj": (WIDE, WIDE),
    "mlp.gate_proj": (LONG, WIDE),
    "mlp.up_proj": (LONG, WIDE),
    "mlp.down_proj": (WIDE, LONG),
}
TARGETS = {"qv": ATTENTION, "all": EVERYTHING}
CEILING = 2 * 2**30
OVER_READING = 2.0
FASTER = {(WIDE, WIDE): 30.0, (LONG, WIDE): 100.0}
LEANER = 20.0
EXACT = 1e-6


def write_models(folder, layers, shapes):
    """Base, aligned and adapter. Weights are windows on one pool of random numbers: drawing all would take minutes."""
    generator = torch.Generator().manual_seed(0)
    pool = 0.02 * torch.randn(2**26, generator=generator)
    start = 0

    def window(o, i):
        nonlocal start
        start = (start + 7919 * 4096) % (pool.numel() - o * i)
        return pool[start : start + o * i].view(o, i)

    maps = {"base": {}, "aligned": {}}
    for first in range(0, layers, PER_SHARD):
        shards = {"base": {}, "aligned": {}}
        for layer in range(first, min(first + PER_SHARD, layers)):
            for name, (o, i) in shapes.items():
                key = f"model.layers.{layer}.{name}.weight"
                weight = window(o, i)
                shards["base"][key] = weight.bfloat16()
                shards["aligned"][key] = (weight + 0.03 * window(o, i)).bfloat16()
        for model, tensors in shards.items():
            (folder / model).mkdir(exist_ok=True)
            file = f"model-{first:05d}.safetensors"
            save_file(tensors, folder / model / file, metadata={"format": "pt"})
            maps[model] |= dict.fromkeys(tensors, file)
    for model, weight_map in maps.items():
        (folder / model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    write_adapter(folder / "adapter", layers, shapes, generator)
    os.sync()


def write_adapter(folder, layers, shapes, generator):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 16}))
    factors = {}
    for layer in range(layers):
        for name, (o, i) in shapes.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            factors[f"{module}.lora_A.weight"] = torch.randn(RANK, i, generator=generator) / i**0.5
            factors[f"{module}.lora_B.weight"] = 0.01 * torch.randn(o, RANK, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors")


def forget(folder):
    """Drop the files from the page cache."""
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(models):
    """Every byte of the target tensors, copied out of the file."""
    buffer = torch.empty(LONG * WIDE, dtype=torch.bfloat16)
    total = 0
    for model in models:
        for weight in model.weights.values():
            tensor = weight.read()
            buffer[: tensor.numel()].copy_(tensor.view(-1))
            total += tensor.nbytes
    return total


def measure(folder, cache, repeats):
    """In a process of its own: seconds of reading, repairing and hashing, and the peak memory of repairing."""
    models = [Checkpoint.open(folder / name) for name in ("aligned", "base")]
    read_once(models)  # a warm cache, and code that has run
    found = {"read": [], "repair": [], "score": [], "peak": 0}
    for n in range(repeats):
        if cache == "cold":
            forget(folder)
        started = time.perf_counter()
        found["bytes"] = read_once(models)
        found["read"].append(time.perf_counter() - started)
        if cache == "cold":
            forget(folder)
        for file in folder.rglob("*.safetensors"):
            os.utime(file)  # or its digest would be known from the repeat before
        out = folder / f"out{n}"
        roles = {"aligned": folder / "aligned", "base": folder / "base"}
        report = repair(folder / "adapter", SafeLoRA(), out=out, **roles)
        found["repair"].append(report.seconds)
        found["score"].append(report.bytes_read / report.bytes_per_second)
        found["peak"] = max(found["peak"], report.peak_bytes)
        assert report.changed
        shutil.rmtree(out)
    started = time.perf_counter()
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as stream:
            hashlib.file_digest(stream, "sha256")
    found["hash"] = time.perf_counter() - started
    return found


def problem(outputs, inputs):
    """One weight in fp32, as in `safe_lora.py`."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    base = 0.02 * draw(outputs, inputs)
    return base + 0.0005 * draw(outputs, inputs), base, 0.01 * draw(outputs, RANK), draw(RANK, inputs) / inputs**0.5


METHODS = {"dense": dense, "streamed": streamed}


def peak(name, outputs, inputs):
    """Peak resident memory above the inputs, in a process that has run nothing of that size before [bytes]."""
    METHODS[name](*problem(64, 64))
    tensors = problem(outputs, inputs)
    forget_peak()
    before = peak_bytes()
    METHODS[name](*tensors)
    return peak_bytes() - before


def elsewhere(*arguments):
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def against_dense(shape, repeats):
    """Prints one weight's times and memory; yields what to check."""
    tensors = problem(*shape)
    aligned, base, b, _ = (tensor.double() for tensor in tensors)
    v = aligned - base
    exact = v @ (v.T @ b) / v.norm()
    del aligned, base, v
    error = float((streamed(*tensors)[0] - exact).norm() / exact.norm())
    seconds = {name: min(timed(f, tensors) for _ in range(repeats)) for name, f in METHODS.items()}
    memory = {name: elsewhere("--one", name, "--shape", *shape) for name in METHODS}
    faster, leaner = (x["dense"] / max(x["streamed"], 1e-9) for x in (seconds, memory))
    for name in METHODS:
        print(f"  {name:9s} {seconds[name] * 1e3:9.1f} ms  extra memory {memory[name] / 2**20:8.1f} MiB")
    title = "x".join(map(str, shape))
    yield f"{title}: {faster:.1f}x faster, at least {FASTER[shape]:g}x", faster >= FASTER[shape]
    yield f"{title}: {leaner:.1f}x less extra memory, at least {LEANER:g}x", leaner >= LEANER
    yield f"{title}: C B within {error:.1e} of fp64, at most {EXACT:g}", error <= EXACT


def checkpoint(options):
    """Prints the repair's times and memory; yields what to check."""
    folder = Path(tempfile.mkdtemp(prefix="moored-benchmark-", dir=options.folder))
    try:
        write_models(folder, options.layers, TARGETS[options.targets])
        found = elsewhere("--measure", folder, "--cache", options.cache, "--repeats", options.repeats)
    finally:
        shutil.rmtree(folder)
    size, best = found["bytes"] / 1e9, {name: min(found[name]) for name in ("read", "repair", "score")}
    print(
        f"{options.layers} layers, {options.targets}, {size:.2f} GB of target tensors in bf16, page cache "
        f"{options.cache}, {torch.get_num_threads()} threads, best of {options.repeats}"
    )
    print(
        f"  reading them once {best['read']:7.2f} s   hashing them (for the report), one thread {found['hash']:7.2f} s"
    )
    print(f"  repair            {best['repair']:7.2f} s   of which scoring {best['score']:7.2f} s")
    whole, scoring = (best[name] / best["read"] for name in ("repair", "score"))
    print(f"  repair / reading  {whole:7.2f}     scoring / reading {scoring:7.2f}")
    if options.cache == "cold":
        yield f"repair / reading {whole:.2f}, at most {OVER_READING:g}", whole <= OVER_READING
    yield f"peak memory {found['peak'] / 2**30:.2f} GiB, less than {CEILING / 2**30:g} GiB", found["peak"] < CEILING


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="layers of the checkpoints")
    parser.add_argument("--targets", choices=TARGETS, default="qv", help="modules that are adapted")
    parser.add_argument("--cache", choices=("warm", "cold"), default="warm", help="state of the page cache")
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement")
    parser.add_argument("--folder", help="where to write, instead of the system's temporary folder")
    parser.add_argument("--no-dense", action="store_true", help="leave the dense formula away")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.cache, options.repeats)))
        return 0
    if options.one:
        print(peak(options.one, *options.shape))
        return 0
    checks = dict(checkpoint(options))
    for shape in () if options.no_dense else FASTER:
        checks |= dict(against_dense(shape, options.repeats))
    for text, ok in checks.items():
        print("ok    " if ok else "MISSED", text)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
