# SPDX-License-Identifier: Apache-2.0
"""`moored judge`: verdicts on answers that you have already."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moored.judges.base import Exchange, Verdict


def judge(
    answers: Annotated[
        Path, typer.Argument(help="JSON lines with `prompt` and `answer`, and `reference` if the judge needs it.")
    ],
    judge_name: Annotated[
        str, typer.Option("--judge", help="refusal, keywords, harmfulness ...; see `moored list judges`.")
    ] = "refusal",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter of the judge, e.g. model=gpt-oss-safeguard; repeatable.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the verdicts (JSON lines). [default: print them]")] = None,
) -> None:
    """Judge answers: one verdict per line in the same order, and the share with its 95 % interval.

    A verdict's value is 0-1 (for `refusal`, 1 = refused); null means that it could not be judged, with the reason.
    """
    from moored.cli.settings import parameters
    from moored.metrics.interval import share_of
    from moored.study.methods import build

    judge = build("judges", judge_name, parameters(sets or []))
    exchanges = read_exchanges(answers)
    verdicts = judge.judge(exchanges)
    lines = "".join(
        json.dumps(_record(*pair), ensure_ascii=False) + "\n" for pair in zip(exchanges, verdicts, strict=True)
    )
    if out is None:
        typer.echo(lines, nl=False)
    else:
        from moored.report.record import write_whole

        write_whole(out, lines)
    summary = share_of(verdicts, lambda value: value)
    rest = f"; {summary.unjudged} could not be judged" if summary.unjudged else ""
    split = f"; the judges disagree on {summary.disagreement:.1f} %" if summary.disagreement else ""
    typer.echo(f"{judge.judges}: {summary}{rest}{split}", err=True)


def read_exchanges(path: Path) -> list[Exchange]:
    """Prompts with answers from JSON lines; an answer may be empty, because models do that.

    Raises:
        DataError: the file is missing or empty, or a line is not such an object; names the line.
    """
    from moored.errors import DataError
    from moored.judges.base import Exchange

    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    exchanges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(value, dict) or not all(isinstance(value.get(k), str) for k in ("prompt", "answer")):
            raise DataError(f"{path}, line {number}: must be an object with the texts `prompt` and `answer`")
        exchanges.append(
            Exchange(prompt=value["prompt"], answer=value["answer"], reference=str(value.get("reference", "")))
        )
    if not exchanges:
        raise DataError(f"{path} holds no answers; give one JSON object per line")
    return exchanges


def _record(exchange: Exchange, verdict: Verdict) -> dict[str, Any]:
    return {
        "prompt": exchange.prompt,
        "answer": exchange.answer,
        "value": None if math.isnan(verdict.value) else verdict.value,
        "reason": verdict.reason,
        "judge": verdict.judge,
    }
