# SPDX-License-Identifier: Apache-2.0
"""Bad input, interrupted runs and memory: nothing is lost, nothing is half-written."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moored.cli import main
from moored.errors import CheckpointError, ConfigError, NeverSupported
from moored.repairs.baselines import ScaleAdapter
from moored.repairs.engine import repair
from moored.repairs.safe_lora import SafeLoRA
from repairs.repair_models import digests, save_adapter, save_pair, weights


def roles(trio):
    return {"aligned": trio.aligned, "base": trio.base}


def test_output_folder_is_new(trio, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="`out` .* exists"):
        repair(trio.adapter, SafeLoRA(), out=tmp_path / "out", **roles(trio))
    assert (tmp_path / "out" / "mine").read_text() == "precious"
    with pytest.raises(ConfigError, match="inside an input folder"):
        repair(trio.adapter, SafeLoRA(), out=trio.adapter / "repaired", **roles(trio))


def test_output_folder_is_made_with_its_parents_and_readable(trio, tmp_path):
    report = repair(trio.adapter, SafeLoRA(), out=tmp_path / "a" / "b" / "out", **roles(trio))
    out = Path(report.out)
    assert out.stat().st_mode & 0o055 == 0o055 & ~current_umask()
    assert {f.name for f in out.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "moored.json", "README.md"
    }  # fmt: skip
    assert [f.name for f in out.parent.iterdir()] == ["out"]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_progress_counts_both_passes(trio, tmp_path):
    seen = []
    repair(trio.adapter, SafeLoRA(k=3), out=tmp_path / "out", progress=lambda *step: seen.append(step), **roles(trio))
    scored, edited = seen[:8], seen[8:]
    assert [step[:2] for step in scored] == [(n, 8) for n in range(1, 9)]
    assert all(re.fullmatch(r"score, \d+ MB/s", what) for _, _, what in scored)
    assert edited == [(n, 3, "edit") for n in range(1, 4)]


def test_of_models_that_are_only_compared_with_just_what_is_read_is_hashed(trio, tmp_path):
    models = {"aligned": trio.aligned, "base": trio.base}
    compared = repair(trio.adapter, SafeLoRA(), out=tmp_path / "a", **models)
    read = {
        str(folder / "model.safetensors"): {f"{row.module}.weight" for row in compared.modules}
        for folder in models.values()
    }
    assert {file: set(tensors) for file, tensors in compared.tensors.items()} == read
    assert not read.keys() & compared.inputs.keys()
    assert json.loads((tmp_path / "a" / "moored.json").read_text())["tensors"] == compared.tensors
    assert repair(trio.adapter, ScaleAdapter(scale=0.5), out=tmp_path / "b", **models).tensors == {}
    merged = repair(trio.adapter, ScaleAdapter(scale=0.5), out=tmp_path / "c", merge=True, **models)
    assert str(trio.aligned / "model.safetensors") in merged.inputs


def test_every_layer_is_scored_with_as_many_threads(trio, tmp_path, monkeypatch):
    """How a product is split decides its last bits, so it must not depend on how far the hashing is."""
    seen, score = [], SafeLoRA.score
    monkeypatch.setattr(SafeLoRA, "score", lambda *given: (seen.append(torch.get_num_threads()), score(*given))[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        repair(trio.adapter, SafeLoRA(), out=tmp_path / "out", aligned=trio.aligned, base=trio.base)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {2}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_leaves_nothing(code, trio, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("moored.hf.checkpoint.shutil.copyfile", full)
    with pytest.raises(CheckpointError, match="no space left" if code == errno.ENOSPC else "Permission denied"):
        repair(trio.adapter, SafeLoRA(), out=tmp_path / "out", **roles(trio))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from moored.cli import main
from moored.repairs import engine
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
engine._describe = die  # weights are written, the report is not
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("method", "more"), [("scale_adapter", []), ("lox_repair", []), ("task_arithmetic", ["--merge", "--patch"])]
)
def test_a_kill_leaves_no_output_folder(method, more, trio, tmp_path):
    """In place, with other ranks, as a full model."""
    before = digests(trio.adapter)
    models = ["--aligned", str(trio.aligned), "--base", str(trio.base)]
    words = ["repair", str(trio.adapter), *models, "--method", method, *more, "--out", str(tmp_path / "out")]
    ended = subprocess.run([sys.executable, "-c", KILLED, *words], check=False, timeout=300, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [path.name.startswith(".out.") for path in tmp_path.iterdir()] == [True]
    assert any(next(tmp_path.iterdir()).glob("*.safetensors")), "it had begun to write"
    assert digests(trio.adapter) == before
    assert main(words) == 0
    assert (tmp_path / "out" / "moored.json").is_file()


MANY = """
import resource, sys
import torch
from moored.catalogue import catalogue
from moored.hf.checkpoint import Checkpoint
from moored.method import MODELS
from moored.repairs.engine import repair
torch.set_num_threads(1)
torch.linalg.qr(torch.ones(4, 4).double()); torch.ones(64, 64) @ torch.ones(64, 64)
torch.linalg.eigh(torch.eye(64).double()); torch.linalg.svd(torch.eye(64).double())
kinds = catalogue("repairs")
adapter, aligned, base, twin, room = sys.argv[1:]
size = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + int(room), resource.RLIM_INFINITY))
roles = {"aligned": aligned, "base": base, "unaligned": twin, "safe": twin}
for name, kind in kinds.items():
    method = kind(fraction=1.0) if name == "drop_modules" else kind()
    if method.needs() <= MODELS:
        out = f"{adapter}-{name}"
        assert repair(adapter, method, out=out, merge=method.form == "dense", **roles).changed, name
        print(name)
try:
    every = [weight.read().clone() for weight in Checkpoint.open(aligned).weights.values()]
except RuntimeError:
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    """Every repair without rows fits where the weights of one model (exit code 7) do not."""
    wide, layers = 512, 72
    modules = [f"model.layers.{n}.self_attn.q_proj" for n in range(layers)]
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(2 * layers * 4096 + wide * wide, generator=generator)
    for model, shift in (("base", 0), ("aligned", 4096)):
        (tmp_path / model).mkdir()
        for n, module in enumerate(modules):
            start = 8192 * n + shift
            tensor = pool[start : start + wide * wide].view(wide, wide).clone()
            save_file({f"{module}.weight": tensor}, tmp_path / model / f"{n}.safetensors")
        index = {"weight_map": {f"{module}.weight": f"{n}.safetensors" for n, module in enumerate(modules)}}
        (tmp_path / model / "model.safetensors.index.json").write_text(json.dumps(index))
    for adapter in ("adapter", "twin"):
        made = {m: [torch.randn(*shape, generator=generator) for shape in ((4, wide), (wide, 4))] for m in modules}
        save_tiny_adapter(tmp_path / adapter, made)
    room = 60 * 2**20
    assert room < 4 * wide * wide * layers
    words = [*(str(tmp_path / name) for name in ("adapter", "aligned", "base", "twin")), str(room)]
    ended = subprocess.run(
        [sys.executable, "-c", MANY, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert ended.returncode == 7, ended.stdout + ended.stderr[-2000:]
    assert {"safe_lora", "csu_lora", "resta", "ties"} <= set(ended.stdout.split())


CEILING = """
import resource, sys
import torch
from moored.hf.checkpoint import Checkpoint
from moored.repairs.engine import repair
from moored.repairs.safe_lora import SafeLoRA
torch.set_num_threads(1)
torch.linalg.qr(torch.ones(4, 4).double()); torch.ones(64, 64) @ torch.ones(64, 64)
adapter, aligned, base, room = sys.argv[1:]
size = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + int(room), resource.RLIM_INFINITY))
assert repair(adapter, SafeLoRA(fraction=1.0), aligned=aligned, base=base, out=adapter + "-out").changed == 3
a, b = (next(iter(Checkpoint.open(where).weights.values())).read() for where in (aligned, base))
try:
    v = a - b
    p = v @ v.T / v.norm()
except RuntimeError:
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux")
def test_memory_ceiling(tmp_path):
    """Room for three mapped 16 MiB weights, a stack and 20 MiB: the repair fits, V V^T (exit code 7) does not."""
    wide, modules = 2048, [f"model.layers.{n}.self_attn.q_proj" for n in range(3)]
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    for name in ("base", "aligned"):
        (tmp_path / name).mkdir()
        for module in modules:
            save_file({f"{module}.weight": noise(wide, wide)}, tmp_path / name / f"{module}.safetensors")
        index = {"weight_map": {f"{module}.weight": f"{module}.safetensors" for module in modules}}
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps(index))
    save_tiny_adapter(tmp_path / "adapter", {m: (noise(8, wide), noise(wide, 8)) for m in modules})
    arguments = [*(str(tmp_path / name) for name in ("adapter", "aligned", "base")), str((3 * 16 + 8 + 20) * 2**20)]
    ended = subprocess.run(
        [sys.executable, "-c", CEILING, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # or address space is reserved for the thread and never used
    )
    assert ended.returncode == 7, ended.stderr[-2000:]


def save_tiny_adapter(out, modules, **config):
    """An adapter folder written by hand."""
    out.mkdir()
    rank = len(next(iter(modules.values()))[0])
    (out / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank, **config}))
    tensors = {}
    for module, (a, b) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(tensors, out / "adapter_model.safetensors")


def test_adapter_for_another_base(trio, tmp_path):
    aligned, base = save_pair(tmp_path, hidden_size=48)
    with pytest.raises(CheckpointError, match=r"not the model of this update: .*not \(.*and 5 more"):
        repair(trio.adapter, SafeLoRA(), aligned=aligned, base=base, out=tmp_path / "out")
    aligned, base = save_pair(tmp_path / "short", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match="layers.1.*is missing"):
        repair(trio.adapter, ScaleAdapter(), aligned=aligned, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["aligned", "base", "adapter"])
def test_nan_names_the_tensor(where, value, trio, tmp_path):
    source = getattr(trio, where)
    name = "adapter_model.safetensors" if where == "adapter" else "model.safetensors"
    tensors = load_file(source / name)
    key = next(key for key in tensors if "layers.1.mlp.up_proj" in key and "lora_A" not in key)
    tensors[key][0, 0] = value
    (tmp_path / "bad").mkdir()
    for file in source.iterdir():
        (tmp_path / "bad" / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "bad" / name)
    folders = {"adapter": trio.adapter, **roles(trio), where: tmp_path / "bad"}
    with pytest.raises(CheckpointError, match=f"{key} .*NaN or infinite"):
        repair(folders.pop("adapter"), SafeLoRA(), out=tmp_path / "out", **folders)
    assert [f.name for f in tmp_path.iterdir()] == ["bad"]


@dataclass(frozen=True, kw_only=True)
class Broken(ScaleAdapter):
    """Makes infinities."""

    @property
    def factor(self):
        return float("inf")


def test_a_result_that_is_not_finite_is_not_written(trio, tmp_path):
    with pytest.raises(CheckpointError, match="NaN or infinite values in F32"):
        repair(trio.adapter, Broken(), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_repair_cannot_reach_is_listed(trio, tmp_path):
    config = {"modules_to_save": ["norm"], "bias": "all", "target_modules": ["q_proj", "embed_tokens"]}
    with pytest.warns(UserWarning, match="embedding"):
        adapter = save_adapter(trio.aligned, tmp_path / "adapter", **config)
    report = repair(adapter, SafeLoRA(fraction=1.0), out=tmp_path / "out", **roles(trio))
    assert {row.module for row in report.modules} == {f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)}
    assert any("embed_tokens.lora_embedding_B" in name for name in report.untouched)
    assert "base_model.model.model.norm.weight" in report.untouched
    assert any("outside of what this repair edits" in note for note in report.notes)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (adapter, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        f"base_model.model.{row.module}.lora_B.weight" for row in report.modules
    }


def test_another_name_for_the_base_is_noted(trio, tmp_path):
    config = json.loads((trio.adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "x/y"}))
    weights_file = "adapter_model.safetensors"
    (tmp_path / "adapter" / weights_file).write_bytes((trio.adapter / weights_file).read_bytes())
    report = repair(tmp_path / "adapter", SafeLoRA(), out=tmp_path / "out", **roles(trio))
    assert any("trained on x/y" in note for note in report.notes)
    plain = repair(trio.adapter, SafeLoRA(), out=tmp_path / "plain", **roles(trio))
    assert not any("trained on" in note for note in plain.notes)


def test_same_folder_under_two_names_is_refused_at_once(trio, tmp_path):
    (tmp_path / "link").symlink_to(trio.aligned)
    with pytest.raises(NeverSupported, match="same weights"):
        repair(trio.adapter, SafeLoRA(), aligned=trio.aligned, base=tmp_path / "link", out=tmp_path / "out")


def test_bf16_adapter_keeps_its_type_and_metadata(trio, tmp_path):
    from safetensors import safe_open

    tensors = {k: v.bfloat16() for k, v in load_file(trio.adapter / "adapter_model.safetensors").items()}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_bytes((trio.adapter / "adapter_config.json").read_bytes())
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt", "by": "me"})
    repair(tmp_path / "adapter", SafeLoRA(fraction=1.0), out=tmp_path / "out", **roles(trio))
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "me"}
    assert {v.dtype for v in weights(tmp_path / "out").values()} == {torch.bfloat16}


def test_tokenizer_files_come_along_and_an_old_report_does_not(trio, tmp_path):
    repair(trio.adapter, ScaleAdapter(scale=0.5), out=tmp_path / "half")
    (tmp_path / "half" / "tokenizer_config.json").write_text("{}")
    report = repair(tmp_path / "half", ScaleAdapter(scale=0.5), out=tmp_path / "quarter")
    assert (tmp_path / "quarter" / "tokenizer_config.json").exists()
    assert json.loads((tmp_path / "quarter" / "moored.json").read_text())["tuned"] == report.tuned


def test_rounding_that_swallows_the_update_is_said(trio, tmp_path):
    """In bf16, W_aligned + C Delta can only hold C Delta where it is not much smaller than W."""
    aligned, base = save_pair(tmp_path, dtype=torch.bfloat16)
    tensors = {k: (v.float() * 1.05).bfloat16() for k, v in weights(aligned).items()}
    (tmp_path / "tuned").mkdir()
    save_file(tensors, tmp_path / "tuned" / "model.safetensors")
    method = ScaleAdapter(scale=0.02)
    report = repair(tmp_path / "tuned", method, aligned=aligned, out=tmp_path / "out")
    assert any("rounding to BF16 moved the new update by" in row.note for row in report.modules)
    fine = repair(trio.adapter, SafeLoRA(), out=tmp_path / "fine", **roles(trio))
    assert not any(row.note for row in fine.modules)
