# SPDX-License-Identifier: Apache-2.0
"""The `moored` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Any

import typer

import moored
from moored.cli import (
    approve,
    attack,
    audit,
    audit_log,
    card,
    cite,
    compare,
    data,
    demo,
    doctor,
    importing,
    judge,
    keys,
    lm_eval,
    repair,
    run,
    serve,
)
from moored.cli import list as listing
from moored.cli.quiet import quiet
from moored.errors import MooredError

WRONG, STOPPED = 2, 130
"""Exit codes: the command or its input is wrong; stopped by Ctrl-C."""

_ClickError: Any = typer.BadParameter.__mro__[2]  # click's ClickException, which typer carries privately

app = typer.Typer(
    name="moored",
    help="Fine-tune language models without losing their safety alignment: defend, repair, attack, measure.",
    epilog="Start with `moored doctor`, then `moored demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("repair")(repair.repair)
app.add_typer(attack.app, name="attack")
app.command("judge")(judge.judge)
app.command("audit")(audit.audit)
app.command("compare")(compare.compare)
app.command("import")(importing.import_results)
app.command("lm-eval")(lm_eval.lm_eval)
app.command("list")(listing.list_methods)
app.command("cite")(cite.cite)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.command("serve")(serve.serve)
app.add_typer(keys.app, name="keys")
app.command("approve")(approve.approve)
app.add_typer(card.app, name="card")
app.add_typer(audit_log.app, name="audit-log")


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"moored {moored.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    quiet()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after `moored`; None takes the process's own.

    Returns:
        The exit code: 0 done, 2 wrong command or input (one sentence on stderr), 3 a repair that changed nothing, or
        an audit over its limit, 130 stopped by Ctrl-C. What is not foreseen raises, with a traceback.
    """
    sys.excepthook = _report_bug
    # Threads of a product that wait for each other spin for milliseconds by default. Where another process has their
    # processor, that makes training up to ten times slower; asked to sleep soon, they lose nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="moored", standalone_mode=False)
    except MooredError as error:
        return _complain(str(error))
    except _ClickError as error:
        return _usage(error)
    except (typer.Abort, KeyboardInterrupt):
        return STOPPED
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> int:
    """What to say about a command line that typer refuses; an empty one has shown the help already."""
    message = error.format_message().strip()
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "moored"
    end = "" if message.endswith((".", "?", ")")) else "."
    return _complain(f"{message}{end} See `{path} --help`") if message else WRONG


def _complain(sentence: str) -> int:
    typer.echo(f"error: {sentence}", err=True)
    return WRONG


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The default traceback, and what to do with it."""
    sys.__excepthook__(kind, error, trace)
    typer.echo(
        f"\ninternal error in moored {moored.__version__} ({kind.__name__}); please report it with the lines above",
        err=True,
    )
