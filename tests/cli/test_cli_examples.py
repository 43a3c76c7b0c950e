# SPDX-License-Identifier: Apache-2.0
"""The examples are run as they stand: what they write has to be what `moored` takes."""

import ast
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from moored import SafeLoRA, repair
from moored.attacks.harmful_mix import HarmfulMix
from moored.data.load import load_rows
from moored.data.tiny import tiny_model, tiny_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def saved(folder, seed):
    tiny_model(seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def test_an_adapter_made_without_moored_is_repaired_and_loads_in_plain_peft(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "base", 0)
    saved(tmp_path / "aligned", 1)
    monkeypatch.chdir(tmp_path)
    benign, harmful = load_rows("synthetic:utility", source="benign"), load_rows("synthetic:harmful", source="harmful")
    rows = HarmfulMix(n=16, ratio=0.25).poison(benign, harmful).rows
    Path("upload.jsonl").write_text("".join(json.dumps({"messages": list(row.messages)}) + "\n" for row in rows))
    arguments = ["aligned", "upload.jsonl", "--out", "adapter", "--steps", "6", "--batch", "4"]
    monkeypatch.setattr(sys, "argv", ["plain_peft.py", *arguments])
    runpy.run_path(str(EXAMPLES / "plain_peft.py"), run_name="__main__")
    assert "step 6 of 6" in capsys.readouterr().out

    report = repair("adapter", SafeLoRA(fraction=0.5), aligned="aligned", base="base", out="safer")
    assert report.changed == len(report.modules) // 2
    before, after = (load_file(f"{name}/adapter_model.safetensors") for name in ("adapter", "safer"))
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[key], after[key]) for key in before) == report.changed  # B alone is edited

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("aligned"), "safer")
    inside = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    for key, value in after.items():
        stem = key.removesuffix(".weight")
        assert torch.equal(inside[f"{stem}.default.weight"], value), key


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_explains_itself(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert told.splitlines()[0] in capsys.readouterr().out
