# SPDX-License-Identifier: Apache-2.0
"""Fine-tune language models without losing their safety alignment.

Three calls carry most of the package::

    trainer = protect(trainer, Lisa(), alignment=rows)                    # defend a training run
    report = repair("adapter/", SafeLoRA(), aligned=..., base=..., out="safer/")  # repair what is tuned
    results = Study(recipe).run(store)                                   # align, attack, defend, repair, judge

Importing `moored` imports no torch: names are loaded when they are first used. Every defence, repair, attack and judge
is here under its class name (`moored list` shows them).
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "protect": "moored.protect",
    "release": "moored.protect",
    "Context": "moored.context",
    "Serving": "moored.serving",
    "SafetyReward": "moored.hf.rewards",
    "Defense": "moored.defenses.base",
    "repair": "moored.repairs.engine",
    "Repair": "moored.repairs.base",
    "ScaleAdapter": "moored.repairs.baselines",
    "DropModules": "moored.repairs.baselines",
    "Interpolate": "moored.repairs.baselines",
    "ExactAnswer": "moored.judges.exact",
    "Row": "moored.data.schema",
    "load_rows": "moored.data.load",
    "save_rows": "moored.data.load",
    "DriftMonitor": "moored.hf.monitor",
    "generate": "moored.hf.generate",
    "evaluate": "moored.tasks.evaluate",
    "audit": "moored.auditing",
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
    """Load a public name on first use (PEP 562): a method's class from the file that is named like it."""
    home = _HOMES.get(name) or _method_files().get(name.lower())
    if home is None or name.startswith("_"):
        raise AttributeError(f"module 'moored' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


@cache
def _method_files() -> dict[str, str]:
    """Modules of single methods by the class name in lower case: `moored.TVaccine` stands in defenses/t_vaccine.py."""
    nouns = ("defenses", "repairs", "attacks", "judges")
    files = [(noun, file.stem) for noun in nouns for file in (Path(__file__).parent / noun).glob("*.py")]
    return {stem.replace("_", ""): f"moored.{noun}.{stem}" for noun, stem in files}


def __dir__() -> list[str]:
    return sorted(__all__)
