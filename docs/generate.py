# SPDX-License-Identifier: Apache-2.0
"""Write the pages that are made from the code: `python docs/generate.py` (or `--check`)."""

from __future__ import annotations

import sys
from pathlib import Path

from moored.catalogue import catalogue
from moored.report.pool import pool
from moored.report.record import Record
from moored.report.table import markdown

HERE = Path(__file__).parent
ROOT = HERE.parent
START, END = "<!-- table:demo -->\n", "<!-- /table:demo -->"


def paper_index() -> str:
    """One section per published method, from its `MethodInfo`; baselines in a list at the end."""
    out = [
        "# Paper index",
        "",
        "Generated from `MethodInfo` by `docs/generate.py`; do not edit.",
        "",
        "*paper*: an oracle test written from the equations backs it. *simplified*, *variant*: see *Differs*.",
        "",
    ]
    methods = [cls for noun in ("defenses", "repairs") for cls in catalogue(noun).values()]
    for cls in sorted((m for m in methods if m.info.arxiv), key=lambda m: (m.info.year, m.info.name)):
        info = cls.info
        needs = ", ".join(sorted(info.needs)) or "nothing"
        null = ", ".join(f"`{k}={v!r}`" for k, v in info.null.items())
        out += [
            f"## {cls.__name__} (`{info.name}`)",
            "",
            f"{info.authors} *{info.title}.* {info.venue}. [arXiv:{info.arxiv}](https://arxiv.org/abs/{info.arxiv})",
            "",
            f"- Stage: {info.stage}. Needs: {needs}. Fidelity: {info.fidelity}.",
            *([f"- Differs: {info.differs}."] if info.differs else []),
            f"- Cost: {info.cost}.",
            *([f"- Does nothing at {null}."] if null else []),
            *([f"- The paper's values: `{cls.__name__}.paper()`."] if hasattr(cls, "paper") else []),
            "",
        ]
    out += ["## Baselines without a paper", ""]
    out += [f"- `{m.info.name}` ({m.__name__}): {m.info.title}" for m in methods if not m.info.arxiv]
    return "\n".join(out) + "\n"


def readme() -> str:
    """The README with the measured table of the demo, pooled over the seeds in `results/`."""
    before, _, rest = (ROOT / "README.md").read_text().partition(START)
    _, _, after = rest.partition(END)
    records = [Record.load(path) for path in sorted((ROOT / "results").glob("demo-seed*.json"))]
    table = markdown(pool(records)) if records else "No run of this version is recorded in `results/` yet."
    return f"{before}{START}\n{table.strip()}\n\n{END}{after}"


PAGES = {HERE / "paper_index.md": paper_index, ROOT / "README.md": readme}


def main() -> int:
    """Write the pages, or with `--check` say which are stale."""
    stale = []
    for page, make in PAGES.items():
        if "--check" not in sys.argv:
            page.write_text(make())
        elif not page.is_file() or page.read_text() != make():
            stale.append(page.name)
    if stale:
        print(f"stale: {', '.join(stale)}; run `make docs`", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
