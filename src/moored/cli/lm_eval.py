# SPDX-License-Identifier: Apache-2.0
"""`moored lm-eval`: what a model still can do, by the harness that the field reports."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer


def lm_eval(
    model: Annotated[str, typer.Argument(help="A model folder, a hub id, smollm2, or the folder of a PEFT adapter.")],
    tasks: Annotated[list[str], typer.Option("--tasks", help="A task or group of lm-eval, e.g. arc_easy; repeatable.")],
    base: Annotated[str, typer.Option(help="The model under the adapter. [default: as the adapter says]")] = "",
    include: Annotated[
        Path | None,
        typer.Option(help="A folder with task files (YAML) of your own; they can run code, so only ones you trust."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows per task; 0 = all.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 8,
    chat: Annotated[bool, typer.Option("--chat", help="Put every prompt into the model's chat template.")] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Keep lm-eval's own results and answers in this folder. [default: dropped]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the record (JSON) here, for `moored compare`.")] = None,
) -> None:
    """Run lm-eval on a model or adapter, in a process of its own, and show what it measured.

    It needs `pip install 'moored[lm-eval]'`, and most of its tasks download their data. Results that you have already
    are read by `moored import`.
    """
    from rich.console import Console

    from moored.cli.studies import show
    from moored.errors import ConfigError
    from moored.hf.adapters import is_adapter, named_base
    from moored.hf.loaders import load_serving, resolve_model
    from moored.interop import lm_eval as harness

    adapter = Path(model) if is_adapter(Path(model)) else None
    if base and adapter is None:
        raise ConfigError(f"--base goes with an adapter, and {model} is none (it has no adapter_config.json)")
    under = base or named_base(adapter) if adapter else model
    if not under:
        raise ConfigError(f"{adapter} does not name the model under the adapter; give it with --base")
    with TemporaryDirectory(prefix="moored-lm-eval-") as scratch:
        found = harness.run(
            resolve_model(under),
            [name for each in tasks for name in each.split(",") if name],
            adapter=adapter,
            out=keep or Path(scratch),
            include=include,
            limit=limit,
            batch=batch,
            chat=chat,
        )
        record = harness.read(found)
    if load_serving(under, adapter=adapter) is not None:
        bare = "the model is to be served with a system prompt of its defence, which lm-eval did not send"
        record = record.model_copy(update={"warnings": [*record.warnings, bare]})
    show(record, Console())
    if out is not None:
        typer.echo(f"written: {record.save(out)}")
