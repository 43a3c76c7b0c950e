# SPDX-License-Identifier: Apache-2.0
"""`moored serve`: the fine-tuning API on this machine."""

from __future__ import annotations

import logging
import os
import socket
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import moored
from moored.cli.launching import LauncherName, LauncherOptions
from moored.errors import ConfigError, NeedsError

if TYPE_CHECKING:
    from moored.service.child import Child
    from moored.service.settings import ServerSettings

NEEDED = (
    "fastapi",
    "uvicorn",
    "python_multipart",
    "sqlalchemy",
    "alembic",
    "cryptography",
    "prometheus_client",
    "detect_secrets",
    "stdnum",
    "phonenumbers",
    "psutil",
    "httpx",
)
"""Packages of the extra `serve`, as they are imported."""

WORKER = "moored.service.worker"

HOME = Path("moored-home")

HomeOption = Annotated[Path, typer.Option(help="Folder that holds everything of the server.")]
DatabaseOption = Annotated[
    str,
    typer.Option(
        envvar="MOORED_DATABASE", help="URL of a database, e.g. postgresql+psycopg://... [default: SQLite in the home]"
    ),
]


def serve(
    home: HomeOption = HOME,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8400,
    database: DatabaseOption = "",
    launcher: LauncherName = "local",
    launcher_options: LauncherOptions = None,
    slots: Annotated[int, typer.Option(min=1, help="Jobs that train at a time.")] = 1,
    engine: Annotated[str, typer.Option(help="What answers: local, or the address of a vLLM server.")] = "local",
    explain_policy: Annotated[
        bool, typer.Option("--explain-policy", help="Print the policy with every default filled in, and end.")
    ] = False,
) -> int:
    """Serve OpenAI's fine-tuning API: every job is screened, trained under a defence, audited and gated.

    The policy is <home>/policy.toml, written on the first start; a change holds for the jobs that come after it. The
    first start prints an admin key; `moored keys` makes more.
    """
    require_serve()
    from moored.service.launchers.named import options_of

    settings = settings_of(
        home=home,
        database=database,
        host=host,
        port=port,
        launcher=launcher,
        launcher_options=options_of(launcher_options or []),
        slots=slots,
        engine=engine,
    )
    if explain_policy:
        return _explain(settings)
    return _serve(settings)


def require_serve() -> None:
    """Refuse if the packages of the service are not there.

    Raises:
        NeedsError: names them.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise NeedsError(f"the service needs {', '.join(missing)}: pip install 'moored[serve]'")


def settings_of(**given: Any) -> ServerSettings:
    """The settings of a server.

    Raises:
        ConfigError: one is wrong.
    """
    from moored.service.settings import ServerSettings
    from moored.study.recipe import validated

    return validated(ServerSettings, given, "moored serve")


def _explain(settings: ServerSettings) -> int:
    from tempfile import TemporaryDirectory

    from moored.service.explain import explained
    from moored.service.policy import Policy, default_policy

    file = settings.policy_file
    with TemporaryDirectory() as folder:
        if not file.exists():
            file = Path(folder) / "policy.toml"
            file.write_text(default_policy(), encoding="utf-8")
        typer.echo(explained(Policy.load(file)), nl=False)
    return 0


def _serve(settings: ServerSettings) -> int:
    import uvicorn

    from moored.service import audit_log
    from moored.service.alone import alone
    from moored.service.app import create_app
    from moored.service.identity import first_key
    from moored.service.listening import config_of
    from moored.service.wiring import launcher_of

    launcher_of(settings).check()  # one that is not there is said before anything starts
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.umask(0o077)  # what users send is nobody else's on this machine
    with _bound(settings) as listening, alone(settings.home):
        port = listening.getsockname()[1]
        app = create_app(settings)
        server = uvicorn.Server(config_of(app, host=settings.host, port=port))
        worker = _worker(settings)
        # A log without an entry looks like one that was removed, so every start makes one.
        audit_log.append(settings.home, "server", "server.started", "server", {"version": moored.__version__})
        _greet(settings, port, first_key(app.state.parts.database), app.state.parts.policy().models)
        # Found before the first client waits for it; a daemon, so that a server which is stopped at once does stop.
        threading.Thread(target=app.state.parts.registry.prepare, daemon=True).start()
        try:
            worker.start()
            server.run(sockets=[listening])
        finally:
            worker.stop()
    return 0


def _bound(settings: ServerSettings) -> socket.socket:
    """The port, taken before anything is made or printed."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named, or asyncio does not see that it is TCP and leaves Nagle's algorithm on: 40 ms an answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); give another --host or --port"
        ) from error
    return listening


def _worker(settings: ServerSettings) -> Child:
    """The process that works on jobs."""
    from moored.service.child import Child

    arguments = ["--home", str(settings.home), "--launcher", settings.launcher, "--slots", str(settings.slots)]
    arguments += [f"--launcher-option={name}={value}" for name, value in settings.launcher_options.items()]
    # A database's URL may hold a password, and everybody on the machine sees the arguments of a process.
    secret = {"MOORED_DATABASE": settings.database} if settings.database else {}
    return Child(WORKER, [*arguments, "--lease", str(settings.lease)], secret)


def _greet(settings: ServerSettings, port: int, key: str | None, models: Any) -> None:
    at = settings.host if ":" not in settings.host else f"[{settings.host}]"
    url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else at}:{port}/v1"
    typer.echo(f"moored serves on {url}; its home is {settings.home}, its policy {settings.policy_file}.")
    if key:
        typer.echo(f"\nYour admin key, shown this once:\n\n    {key}\n")
    else:
        typer.echo("\n`moored keys create` makes a key; with one:\n")
    model = next(iter(models))
    for line in (
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}", api_key="{key or "YOUR_KEY"}")',
        'upload = client.files.create(file=open("rows.jsonl", "rb"), purpose="fine-tune")',
        f'job = client.fine_tuning.jobs.create(model="{model}", training_file=upload.id)',
        "print(client.fine_tuning.jobs.retrieve(job.id).status)",
    ):
        typer.echo(f"    {line}")
    typer.echo("")
