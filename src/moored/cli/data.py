# SPDX-License-Identifier: Apache-2.0
"""`moored data check`: what a fine-tuning API would say of a training file, before it is uploaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moored.data.schema import Row

WRONG = 2
"""The exit code of a file that would be refused."""
_CHARACTERS = 4
"""Characters of a token, roughly, where no model counts them."""

app = typer.Typer(no_args_is_help=True, help="Training files in the format of OpenAI's API.")


@app.callback()
def _group() -> None:
    """Keep `check` a command of its own: typer makes a group of one command that command."""


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="JSON lines: chats, or preferences for DPO.")],
    method: Annotated[str, typer.Option(help="What it is for: supervised or dpo. [default: as the file looks]")] = "",
    model: Annotated[
        str, typer.Option(help="Count tokens with this model: smollm2, a folder or a hub id. [default: estimate them]")
    ] = "",
    row_tokens: Annotated[int, typer.Option(help="Most tokens of an example; needs --model.", min=8)] = 2048,
    screen: Annotated[
        bool, typer.Option("--screen", help="Look for harmful, secret and personal data too; needs moored[serve].")
    ] = False,
) -> None:
    """Check a training file line by line, with the words of OpenAI's API.

    Exit code 0: it would be accepted; 2: it would not, and every complaint names its line. Nothing is uploaded.
    """
    from moored.errors import unknown
    from moored.service.dialect import examine
    from moored.service.policy import Limits

    if method not in ("", "supervised", "dpo"):
        raise unknown("value of --method", method, ("supervised", "dpo"))
    limits = Limits(rows=10_000_000, file_bytes=1 << 40, row_tokens=row_tokens)
    chosen: Any = method or None
    found = examine(file, limits=limits, method=chosen, tokens=_counter(model) if model else None)
    for complaint in found.complaints:
        typer.echo(complaint.message)
    if found.complaints:
        typer.echo(f"{file.name}: {len(found.complaints)} complaints, {found.examples:,} examples read", err=True)
        raise typer.Exit(WRONG)
    _summary(file, found.kind or "", found.examples, found.tokens)
    if screen:
        _screened(file)


def _counter(model: str) -> Any:
    from moored.data.chat import length
    from moored.hf.loaders import load_tokenizer

    tokenizer = load_tokenizer(model)

    def tokens(row: Row) -> int:
        return length(tokenizer, row)

    return tokens


def _summary(file: Path, kind: str, examples: int, tokens: int | None) -> None:
    """Examples, tokens and repeated prompts, in one more pass over the file."""
    from hashlib import sha256

    from moored.data.schema import Row
    from moored.service.dialect import read
    from moored.service.screening.duplicates import prompts

    asked: Counter[bytes] = Counter()
    letters = 0
    for example in read(file):
        rows = (example,) if isinstance(example, Row) else (example.preferred, example.other)
        letters += sum(len(turn["content"]) for row in rows for turn in row.messages)
        asked[sha256("\0".join(prompts(example)).encode()).digest()] += 1
    counted = (
        f"{tokens:,} tokens" if tokens is not None else f"about {letters // _CHARACTERS:,} tokens (--model counts)"
    )
    form = {"chat": "supervised (chats)", "preference": "dpo (preferences)"}[kind]
    typer.echo(f"{file.name}: fine for {form}: {examples:,} examples, {counted} per epoch")
    if repeated := examples - len(asked):
        typer.echo(f"{repeated:,} examples have the same prompt as an earlier one")


def _screened(file: Path) -> None:
    from moored.service.dialect import read
    from moored.service.policy import Screen
    from moored.service.screening import screen

    done = screen(list(read(file)), Screen())
    for each in done.findings:
        typer.echo(f"Line {each.row}: {each.category} ({each.kind}): {each.why}")
    typer.echo(f"{len(done.flagged):,} of {done.rows:,} examples would be flagged by the default policy")
