# SPDX-License-Identifier: Apache-2.0
"""Write the pages that are made from the code: `python docs/generate.py` (or `--check`)."""

from __future__ import annotations

import sys
from pathlib import Path

from moored.catalogue import catalogue

HERE = Path(__file__).parent


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
            f"- The paper's values: `{cls.__name__}.paper()`.",
            "",
        ]
    out += ["## Baselines without a paper", ""]
    out += [f"- `{m.info.name}` ({m.__name__}): {m.info.title}" for m in methods if not m.info.arxiv]
    return "\n".join(out) + "\n"


PAGES = {"paper_index.md": paper_index}


def main() -> int:
    """Write the pages, or with `--check` say which are stale."""
    stale = []
    for name, make in PAGES.items():
        page = HERE / name
        if "--check" not in sys.argv:
            page.write_text(make())
        elif not page.is_file() or page.read_text() != make():
            stale.append(name)
    if stale:
        print(f"stale: {', '.join(stale)}; run `make docs`", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
