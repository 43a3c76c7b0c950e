# SPDX-License-Identifier: Apache-2.0
"""`moored demo`: the provider's story, on a real model, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

INTRO = """\
A provider aligns {model}, then a user uploads {rows} rows to fine-tune on. {harmful} of them are harmful.
Four runs on the same upload, side by side: undefended, Lisa, Safe LoRA, and Vaccine + Lisa + Safe LoRA.
Each answers {prompts} harmful requests it has never seen, harmless look-alikes, and the user's own task.
"""


def demo(
    model: Annotated[
        str, typer.Option(help="Hub id or folder of a causal language model. [default: SmolLM2-135M-Instruct]")
    ] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Of data, attack and training. [default: 0]")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Harmful share of the upload, 0-1. [default: the recipe's, 0.1]")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of the upload. [default: the recipe's]")] = None,
    profile: Annotated[str, typer.Option(help="tiny: a random toy model, under a minute, meaningless numbers.")] = "",
    store: Annotated[Path | None, typer.Option(help="Folder of finished stages. [default: OUT/store]")] = None,
    out: Annotated[Path, typer.Option(help="Folder for demo.json and demo.html.")] = Path("moored-demo"),
) -> int:
    """Break a model's alignment with a poisoned upload, and keep it in three ways; no GPU, no hub.

    Shows a table, two prompts with every run's answer, and writes a report. A second run reuses what the first has
    done. To change more than these options, copy the recipe: `moored run demo --set PATH=VALUE`.
    """
    from moored.cli.studies import run_study
    from moored.study.recipe import Recipe

    options = {"model": model or None, "seed": seed, "attack.harmful_mix.ratio": ratio, "attack.harmful_mix.n": rows}
    sets = [f"{path}={value}" for path, value in options.items() if value is not None]
    recipe = Recipe.load("demo", sets=sets, profile=profile or None)
    typer.echo(_intro(recipe), err=True)
    return run_study(recipe, out=out, store=store)


def _intro(recipe: object) -> str:
    from moored.study.recipe import Recipe

    assert isinstance(recipe, Recipe)
    assert recipe.attack is not None
    mix = recipe.attack.method.parameters
    return INTRO.format(
        model="SmolLM2-135M-Instruct" if recipe.model == "smollm2" else recipe.model,
        rows=mix["n"],
        harmful=round(mix["n"] * mix["ratio"]),
        prompts=recipe.tasks["harmful_requests"].get("n", 64),
    )
