# SPDX-License-Identifier: Apache-2.0
"""The process of one row of a study's table, wherever a launcher runs it.

`python -m moored.service.row <folder>` reads `recipe.yaml` and `row.json` there, does what that row needs and the
store does not have, and says in `progress.jsonl` how far it is. Its exit status is that of `moored.service.tuning`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moored.service.folder import JobFolder
from moored.service.tuning import Stop, Teller, alone, ended

ROW = "row.json"
"""Names the row, as `{"row": name}`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Work on the row of a folder.

    Returns:
        See `moored.service.tuning.main`.
    """
    parser = argparse.ArgumentParser(prog="python -m moored.service.row", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds recipe.yaml and row.json")
    parser.add_argument("--store", type=Path, required=True, help="of finished stages")
    given = parser.parse_args(arguments)
    folder = JobFolder(given.folder.resolve())
    stop = Stop()
    return alone(folder, lambda: ended(folder, lambda: _work(folder, given.store.resolve(), stop)))


def _work(folder: JobFolder, store: Path, stop: Stop) -> None:
    stop.listen()
    from moored.study.recipe import Recipe
    from moored.study.store import Store
    from moored.study.study import Study

    named = folder.read_json(ROW)
    assert named is not None
    opened = Store(store)
    try:
        watch = Teller(folder.progress, stop, diverges=True).watch
        Study(Recipe.load(folder.recipe)).work(opened, watch, row=named["row"])
    finally:
        opened.close()


if __name__ == "__main__":
    sys.exit(main())
