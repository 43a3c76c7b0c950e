"""A worker on a home that was made by a test, with stand-ins for the other parts.

`python worker_process.py HOME [LAUNCHER OPTION ...]`
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from moored.service.launchers.named import launcher_named, options_of
from moored.service.pipeline import Pipeline
from moored.service.worker import Worker
from service.job_server import Bench


def main(home: Path, lease: int, name: str = "local", *options: str) -> None:
    bench = Bench.at(home)
    settings = bench.settings.model_copy(update={"lease": lease})
    found = {"nice": "0"} if name == "local" else options_of(options)
    where = launcher_named(name, found, slots=1, folder=home / "slots")
    pipeline = Pipeline(
        settings=settings, launcher=where, seams=bench.stand.seams(), look=0.05, most_deaths=50, most_attempts=50
    )
    Worker(database=bench.database, pipeline=pipeline, idle=0.1).run(once=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), 5, *sys.argv[2:])
