# SPDX-License-Identifier: Apache-2.0
"""What repairs that run a model hold in memory: nothing that grows with the rows, and of each module what they say."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from moored.catalogue import catalogue
from moored.data.load import save_rows
from moored.data.tiny import tiny_rows
from moored.hf.checkpoint import Checkpoint
from moored.method import MODELS, Need
from moored.repairs import sa_lora
from moored.repairs.lab import Lab
from moored.repairs.tuned import open_tuned
from repairs.repair_cases import ACTIVE, everything
from repairs.repair_models import save_adapter, save_pair

FEW = ACTIVE | {"recover": {"steps": 1, "depth": 1.0, "metric_drop": 1.0}, "somf": {"steps": 2}}
READING = {name for name, kind in catalogue("repairs").items() if not kind(**FEW.get(name, {})).needs() <= MODELS}

CEILING = """
import json, resource, sys
from dataclasses import replace
from pathlib import Path
import torch
from moored.catalogue import catalogue
from moored.data.load import load_rows
from moored.hf.loaders import load_model
from moored.repairs.engine import repair
torch.set_num_threads(1)
root, room, parameters = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
kinds = catalogue("repairs")
methods = {name: kinds[name](**own) for name, own in parameters.items()}
models = {"aligned": root / "aligned", "safe": root / "twin"}
sources = {"harmful": "harmful", "alignment": "alignment", "calibration": "benign"}
rows = {role: load_rows(root / f"{role}.jsonl", source=kind) for role, kind in sources.items()}
def run(name, count):
    own = {role: (few * count)[: len(few) * count] for role, few in rows.items()}
    method = methods[name]
    out = root / f"{name}-{count}"
    return repair(root / "adapter", method, out=out, merge=method.form == "dense", **models, **own).changed
for name in methods:
    assert run(name, 1), name
model, layers = load_model(root / "aligned"), []
size = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
for name in methods:
    assert run(name, 12), name
    print(name, flush=True)
kept = []
for module in model.modules():
    if isinstance(module, torch.nn.Linear):
        module.register_forward_hook(lambda module, args, output: kept.append(args[0].clone()))
try:
    with torch.no_grad():
        for _ in range(12 * 8):
            model(input_ids=torch.ones(4, 24, dtype=torch.long))
except (MemoryError, RuntimeError):
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux")
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    """Twelve times the rows fit where the activations on them (exit code 7) do not."""
    aligned, _ = save_pair(tmp_path, hidden_size=128, intermediate_size=256)
    save_adapter(aligned, tmp_path / "adapter")
    save_adapter(aligned, tmp_path / "twin", seed=4)
    harmful, safe = tiny_rows(32, "harmful"), tiny_rows(32, "alignment")
    safe = [replace(s, messages=(*h.prompt, s.messages[-1])) for h, s in zip(harmful, safe, strict=True)]
    for role, rows in {"harmful": harmful, "alignment": safe, "calibration": tiny_rows(32)}.items():
        save_rows(rows, tmp_path / f"{role}.jsonl")
    parameters = {name: FEW.get(name, {}) for name in sorted(READING)}
    ended = subprocess.run(
        [sys.executable, "-c", CEILING, str(tmp_path), str(ROOM), json.dumps(parameters)],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert ended.returncode == 7, ended.stdout + ended.stderr[-2000:]
    assert {"antidote", "nlsr", "recover", "sa_lora", "safe_delta", "somf"} <= set(ended.stdout.split())


ROOM = 24 * 2**20
"""Over what the process has mapped after one run of each repair."""


def nbytes(found):
    """Of all tensors in what a repair has found out."""
    if isinstance(found, torch.Tensor):
        return found.numel() * found.element_size()
    if isinstance(found, dict):
        return sum(map(nbytes, found.values()))
    return sum(map(nbytes, found)) if isinstance(found, tuple | list) else 0


def lab_of(name, trio):
    """The method and its laboratory on a tiny model with all rows."""
    method = catalogue("repairs")[name](**FEW.get(name, {}))
    aligned = Checkpoint.open(trio.aligned)
    others = {Need.SAFE: open_tuned(trio.safe, aligned=aligned)}
    source = open_tuned(trio.adapter, aligned=aligned, others=others, merge=method.form == "dense")
    given = everything(trio)
    return method, Lab(source, {need: given[need] for need in method.needs() - MODELS}, device="cpu")


def total(trio, width):
    """Of a width per module, over the modules."""
    source = open_tuned(trio.adapter, aligned=Checkpoint.open(trio.aligned))
    return sum(width(source.layer(module)) for module in source.modules)


BOUNDS = {  # bytes, of a module's layer
    "antidote": lambda layer: 8 * (layer.delta.a.shape[1] + layer.delta.rank),
    "nlsr": lambda layer: 8 * layer.delta.rank**2,
    "sa_lora": lambda layer: 8 * layer.delta.b.shape[0] * min(32, layer.delta.b.shape[0]),
    "somf": lambda layer: layer.delta.b.numel(),
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("held", [0, sa_lora.HELD])
def test_what_is_kept_of_a_module_is_what_the_cost_says(name, held, trio, monkeypatch):
    """Numbers per channel or per rank; SaLoRA's frames, whichever way it finds them."""
    monkeypatch.setattr(sa_lora, "HELD", held)
    method, lab = lab_of(name, trio)
    assert 0 < nbytes(method.prepare(lab)) <= total(trio, BOUNDS[name])
