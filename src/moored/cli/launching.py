# SPDX-License-Identifier: Apache-2.0
"""`--launcher` and `--launcher-option`: where training runs."""

from __future__ import annotations

from typing import Annotated

import typer

LauncherName = Annotated[
    str, typer.Option(envvar="MOORED_LAUNCHER", help="Where training runs: local, ray or slurm; see docs/service.md.")
]
LauncherOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--launcher-option",
        metavar="NAME=VALUE",
        envvar="MOORED_LAUNCHER_OPTIONS",
        help="What the launcher is to ask for, e.g. gpus=1; repeatable.",
    ),
]
