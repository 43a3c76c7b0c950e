# SPDX-License-Identifier: Apache-2.0
"""`moored attack`: what an attacker could send and choose, to test your own pipeline with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from moored.attacks.access import Access
    from moored.progress import Progress

UPLOAD = "upload"


class _Attacks(TyperGroup):
    """`moored attack harmful_mix` is short for `moored attack upload harmful_mix`, and so on for every attack."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See click."""
        return super().resolve_command(ctx, args if args[0] in self.commands else [UPLOAD, *args])


app = typer.Typer(
    cls=_Attacks,
    no_args_is_help=True,
    help="What an attacker could do: `moored attack harmful_mix` writes an upload, `moored attack sweep` searches for "
    "the run settings that do most harm.",
)


@app.command("upload")
def attack(
    name: Annotated[str, typer.Argument(help="An attack, e.g. harmful_mix; see `moored list attacks`.")],
    benign: Annotated[
        str, typer.Option(help="Benign rows: synthetic:<set>, a .jsonl/.json/.csv file, or a hub id.")
    ] = "synthetic:utility",
    harmful: Annotated[str, typer.Option(help="Harmful rows with answers, given likewise.")] = "synthetic:harmful",
    n: Annotated[int | None, typer.Option(help="Rows of the upload. [default: the attack's, e.g. 480]")] = None,
    ratio: Annotated[float | None, typer.Option(help="Harmful share, 0-1. [default: the attack's, e.g. 0.1]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw and the order.")] = 0,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another parameter of the attack; repeatable."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model that will be tuned, for attacks that choose rows by it.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="That model before alignment, for attacks that follow the difference.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The rows; a manifest is written beside it. Must not exist.")] = Path(
        "upload.jsonl"
    ),
) -> None:
    """Write an upload with harmful rows in it, and a manifest that says which rows they are.

    The shipped harmful rows are hollow: enough to see whether refusals survive, no use for anything else.
    """
    from moored.cli.bar import bar
    from moored.cli.settings import parameters
    from moored.errors import ConfigError

    manifest = out.with_suffix(".manifest.json")
    for file in (out, manifest):
        if file.exists():
            raise ConfigError(f"{file} exists; choose another --out or delete it")
    named = {"n": n, "ratio": ratio, "seed": seed}
    given = {key: value for key, value in named.items() if value is not None} | parameters(sets or [])

    from moored.data.load import load_rows, provenance, save_rows
    from moored.report.record import write_whole
    from moored.study.methods import build

    method = build("attacks", name, given)
    rows = load_rows(benign, source="benign"), load_rows(harmful, source="harmful")
    with bar(name) as progress:
        upload = method.poison(*rows, _access(model, base, progress) if method.needs() and model else None)
    import json

    upload.manifest["data"] = {"benign": provenance(benign), "harmful": provenance(harmful)}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(manifest, json.dumps(upload.manifest, indent=1) + "\n")
    save_rows(upload.rows, out)
    bad = sum(row.source == "harmful" for row in upload.rows)
    typer.echo(f"{out}: {len(upload.rows)} rows, {bad} of them harmful; which ones stands in {manifest}")


def _access(model: str, base: str | None, progress: Progress | None) -> Access:
    from moored.attacks.access import Access

    return Access(aligned=model, base=base, progress=progress)


@app.command("oracle")
def oracle(
    model: Annotated[str, typer.Option(help="The aligned model: a folder or hub id.")],
    base: Annotated[str, typer.Option(help="That model before alignment.")],
    norm: Annotated[float, typer.Option(help="Length of the update, in lengths of model - base.")] = 1.0,
    k: Annotated[int, typer.Option(help="Directions of model - base, and rank of the adapter.")] = 8,
    out: Annotated[Path, typer.Option(help="The adapter. Must not exist.")] = Path("oracle"),
) -> None:
    """Write an adapter that goes straight against the alignment: what no rows are needed for, to test repairs with."""
    from moored.attacks.weight_oracle import WeightOracle

    attacking = WeightOracle(norm=norm, k=k)
    manifest = attacking.write(_access(model, base, None), out)
    typer.echo(
        f"{out}: an adapter of rank {k} on {manifest['modules']} modules, {norm:g} times as long as the alignment"
    )


@app.command("sweep")
def sweep(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a packaged recipe: attacks, demo ...")],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH=VALUES",
            help="What the attacker chooses, e.g. finetune.training.lr=1e-4..1e-3:log or attack.harmful_mix.ratio="
            "0.05,0.1,0.3; repeatable. [default: learning rate, length, harmful share and draw of the upload]",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Settings tried for each arm, beside the recipe's own.")] = 12,
    keep: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the utility that the undefended run gains, which must be kept, 0-1."),
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the recipe; repeatable. null removes."),
    ] = None,
    profiles: Annotated[
        list[str] | None,
        typer.Option(
            "--profile", metavar="NAME", help="A profile of the recipe, e.g. tiny; repeatable, in this order."
        ),
    ] = None,
    arms: Annotated[
        list[str] | None, typer.Option("--arm", metavar="NAME", help="Search for this arm alone; repeatable.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of finished stages, shared by studies. [default: OUT/store]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the record, the report, and the search itself.")] = Path("runs"),
) -> int:
    """Search an attacker's run settings for the most harm that keeps the utility, for every arm of a recipe.

    Settings are chosen on validation prompts (the first rows of each task), and the worst case stands beside the
    recipe's own settings on the prompts behind them. Stopped with Ctrl-C, the same command goes on.
    """
    from moored.cli.studies import run_sweep
    from moored.study.recipe import Recipe
    from moored.sweep import Sweep, Vary

    search = Sweep(
        recipe=Recipe.load(recipe, sets=sets or [], profile=profiles),
        vary=tuple(map(Vary.parse, vary or [])),
        arms=tuple(arms or []),
        trials=trials,
        keep=keep,
        seed=seed,
    )
    return run_sweep(search, out=out, store=store)
