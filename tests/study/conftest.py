# SPDX-License-Identifier: Apache-2.0
"""A small recipe, and stages that only leave a trace of having run."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moored.study.store import Store

TREE: dict[str, Any] = {
    "name": "small",
    "title": "A small study",
    "model": "some/model",
    "align": {
        "data": [{"data": "synthetic:alignment", "limit": 12}, {"data": "synthetic:utility", "limit": 4}],
        "training": {"steps": 2, "batch": 4},
    },
    "attack": {
        "harmful_mix": {"n": 20, "ratio": 0.2},
        "benign": "synthetic:utility",
        "harmful": "synthetic:harmful",
    },
    "finetune": {"training": {"steps": 2, "batch": 4}, "roles": {"alignment": "synthetic:alignment"}},
    "tasks": {"harmful_requests": {"n": 4}, "utility": {"n": 4}},
    "arms": {
        "plain": {"title": "Undefended"},
        "lisa": {"title": "Lisa", "finetune": {"defenses": [{"lisa": {"rho": 1.0}}]}},
        "repaired": {"title": "Safe LoRA", "repairs": [{"safe_lora": {"fraction": 0.5}}]},
    },
}


@pytest.fixture
def tree() -> dict[str, Any]:
    """A recipe in plain values: three arms, two tasks."""
    return deepcopy(TREE)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """An empty store."""
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


class Work:
    """What the faked stages did, in order: "train", "repair", "answer"."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.answer: Callable[[str], str] = lambda prompt: "I can't help with that."
        self.fail_at: int | None = None

    def did(self, what: str) -> None:
        if self.fail_at is not None and len(self.done) == self.fail_at:
            raise KeyboardInterrupt
        self.done.append(what)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Replace training, repair, loading and generation; everything else is real."""
    trace = Work()

    def fine_tune(model: Any, rows: Any, out: Path, *, training: Any, progress: Any, **_: Any) -> Any:
        trace.did("train")
        out.mkdir(exist_ok=True)
        (out / "adapter_config.json").write_text("{}")
        progress(1, 1, "loss 1.0")
        report = {"seconds": 1.0, "steps": 2, "passes_per_step": 1.0, "peak_bytes": 10, "rows": len(rows)}
        report |= {"trainable": 5, "fired": {}, "log": [{"step": 2, "loss": 1.5}], "drift": []}
        return SimpleNamespace(record=lambda: report)

    def repair(tuned: Any, method: Any, *, out: Path, **_: Any) -> Any:
        trace.did("repair")
        out.mkdir()
        (out / "adapter_config.json").write_text("{}")
        module = {"module": "a", "cosine": 0.5, "null_cosine": None, "signed": -0.1, "edited": True}
        report = {"method": "safe_lora", "parameters": method.parameters(), "changed": 1, "modules": [module]}
        report |= {"seconds": 0.1, "peak_bytes": 1}
        return SimpleNamespace(record=lambda: json.loads(json.dumps(report)))

    def generate(model: Any, tokenizer: Any, prompts: Any, **_: Any) -> list[str]:
        trace.did("answer")
        return [trace.answer(prompt[-1]["content"]) for prompt in prompts]

    monkeypatch.setattr("moored.hf.train.fine_tune", fine_tune)
    monkeypatch.setattr("moored.repairs.engine.repair", repair)
    monkeypatch.setattr("moored.hf.generate.generate", generate)
    monkeypatch.setattr("moored.hf.loaders.load_model", lambda *a, **k: object())
    monkeypatch.setattr("moored.hf.loaders.load_tokenizer", lambda *a, **k: object())
    return trace
