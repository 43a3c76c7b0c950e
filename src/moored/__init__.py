# SPDX-License-Identifier: Apache-2.0
"""Fine-tune language models without losing their safety alignment.

Three calls carry most of the package::

    trainer = protect(trainer, Lisa(), alignment=rows)                    # defend a training run
    report = repair("adapter/", SafeLoRA(), aligned=..., base=..., out="safer/")  # repair what is tuned
    results = Study(recipe).run(store)                                   # align, attack, defend, repair, judge

Importing `moored` imports no torch: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "protect": "moored.protect",
    "release": "moored.protect",
    "Context": "moored.context",
    "Defense": "moored.defenses.base",
    "Vaccine": "moored.defenses.vaccine",
    "Lisa": "moored.defenses.lisa",
    "SafeInstr": "moored.defenses.safe_instr",
    "repair": "moored.repairs.engine",
    "Repair": "moored.repairs.base",
    "SafeLoRA": "moored.repairs.safe_lora",
    "ScaleAdapter": "moored.repairs.baselines",
    "DropModules": "moored.repairs.baselines",
    "Interpolate": "moored.repairs.baselines",
    "HarmfulMix": "moored.attacks.harmful_mix",
    "Refusal": "moored.judges.refusal",
    "Row": "moored.data.schema",
    "load_rows": "moored.data.load",
    "save_rows": "moored.data.load",
    "DriftMonitor": "moored.hf.monitor",
    "generate": "moored.hf.generate",
    "evaluate": "moored.tasks.evaluate",
    "Recipe": "moored.study.recipe",
    "Study": "moored.study.study",
    "MethodInfo": "moored.method",
    "Need": "moored.method",
    "citation": "moored.method",
    "catalogue": "moored.catalogue",
    "make": "moored.catalogue",
    "MooredError": "moored.errors",
    "ConfigError": "moored.errors",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'moored' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
