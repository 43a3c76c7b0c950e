# SPDX-License-Identifier: Apache-2.0
"""Write the pages that are made from the code: `python docs/generate.py` (or `--check`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import evidence
import repaired

from moored.catalogue import catalogue
from moored.method import Stage
from moored.report.pool import pool
from moored.report.record import Record
from moored.report.table import markdown
from moored.service import policy_reference

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tests"))  # the facts of the support matrix are those that its tests read


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
            f"{info.authors} *{info.title}.* {info.when}. [arXiv:{info.arxiv}](https://arxiv.org/abs/{info.arxiv})",
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


def demo() -> str:
    """The measured table of the demo, pooled over the seeds in `results/`."""
    records = [Record.load(path) for path in sorted((ROOT / "results").glob("demo-seed*.json"))]
    return markdown(pool(records)) if records else "No run of this version is recorded in `results/` yet."


def support() -> str:
    """Which defence works where: a row per defence, a column per heading of `contract.support.AXES`."""
    from contract.cases import CASES
    from contract.support import AXES, DEFENSES, applies, refusal

    columns: dict[str, list[str]] = {}
    for key, axis in AXES.items():
        columns.setdefault(axis.heading, []).append(key)
    notes: dict[str, int] = {}

    def note(text: str) -> str:
        return str(notes.setdefault(text, len(notes) + 1))

    def cell(name: str, heading: str) -> str:
        axes = [axis for axis in columns[heading] if applies(name, axis)]
        if not axes:
            return "–"
        refused = {axis: reason for axis in axes if (reason := refusal(name, axis))}
        cited = {axis: note(f'refused: "... {reason} ..."') for axis, reason in refused.items()}
        if len(refused) == len(axes):
            return "no " + ", ".join(dict.fromkeys(cited.values()))
        if refused:
            return "✓ but " + ", ".join(f"{axis} {number}" for axis, number in cited.items())
        batchwise = CASES[name].batchwise
        if heading != "accumulation" or batchwise == {}:
            return "✓"
        if batchwise is None:
            return "✓ " + note("adds up, but a micro-batch has a meaning of its own: see the method's docstring")
        named = ", ".join(f"`{key}={value!r}`" for key, value in batchwise.items())
        return "✓ " + note(f"two micro-batches equal twice the batch at {named} only: see the method's docstring")

    rows = [[cls.__name__, *(cell(name, heading) for heading in columns)] for name, cls in DEFENSES.items()]
    lines = [["Defence", *columns], ["---", *(":-:" for _ in columns)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    remarks = [
        "✓: tested. no: refused, with a message that gives the reason. –: of a trainer that it refuses.",
        *dict.fromkeys(a.note for a in AXES.values()),
    ]
    listed = "\n".join(f"{number}. {text}" for text, number in notes.items())
    return f"{table}\n\n{' '.join(f'{r}.' if not r.endswith('.') else r for r in remarks if r)}\n\n{listed}"


def methods() -> str:
    """The published methods by stage."""
    rows = ["| stage | methods |", "| --- | --- |"]
    every = [cls for noun in ("defenses", "repairs") for cls in catalogue(noun).values()]
    for stage in get_args(Stage):
        rows.append(f"| {stage} | {', '.join(m.__name__ for m in every if m.info.stage == stage)} |")
    for noun in ("attacks", "judges"):
        rows.append(f"| {noun} | {', '.join(cls.__name__ for cls in catalogue(noun).values())} |")
    return "\n".join(rows)


def costs() -> str:
    """What every defence costs, as last measured by `benchmarks/step_cost.py`."""
    measured = json.loads((ROOT / "results" / "step_cost.json").read_text())
    machine = measured["machine"]
    commit, plus, rest = measured["commit"].partition("+")
    dirty = " and what was not committed then" if plus + rest else ""
    out = [
        "# What a defence costs",
        "",
        "Generated by `docs/generate.py` from `results/step_cost.json`; do not edit. To measure anew:",
        "`python benchmarks/step_cost.py --out results/step_cost.json`.",
        "",
        "Ratios to the same trainer undefended, in one process, runs taking turns: the median of "
        f"{measured['rounds']} rounds of {measured['steps']} steps.",
        "A random Llama of 25M weights, LoRA on all linear layers, 8 rows of 64 tokens, on "
        f"{machine['cores']} cores ({machine['processor']}); commit {commit[:12]}{dirty}.",
        "On two cores a ratio is good to about 10 %: PTST and EMA add next to nothing, Lisa nothing.",
        "",
        "*Before*: what is done once before the first step, in undefended steps. *Activations*: the most bytes that",
        "autograd held for backward at one time in a step, weights left out: mean over eight steps (the worst step).",
        "",
        "| run | time per step | before | activations |",
        "| --- | --: | --: | --: |",
    ]
    for name, row in measured["runs"].items():
        before = f"{row['steps_before']:.0f}" if row["steps_before"] >= 1 else "–"
        out.append(
            f"| {name} | {row['ratio']:.2f}× | {before} | {row['activations']:.2f}× ({row['worst_activations']:.2f}×) |"
        )
    return "\n".join(out) + "\n"


def measured() -> str:
    """What the catalogue's recipe measured on the real model."""
    return "\n".join(
        [
            "# What was measured",
            "",
            "Generated by `docs/generate.py` from `results/catalogue*.json`; do not edit. What to make of it: "
            "[choosing](choosing.md); what did not work: [`LOG.md`](../LOG.md).",
            "",
            "SmolLM2-135M-Instruct, hollow stand-ins for harm, rows, adapter and user steps the same for all; the",
            "recipe is `moored run catalogue`. Defences of the alignment stage are tuned at half the rate of the",
            "others, so *Half the learning rate* is what they stand beside. Seconds are of training, two runs side",
            "by side with a thread each: good for size, not for speed; [costs](costs.md) has the ratios.",
            "",
            "## Every defence, one seed",
            "",
            evidence.overview(),
            "",
            "## The best, three seeds",
            "",
            "A tenth of the rows harmful.",
            "",
            evidence.best(),
            "",
            "## The best, three shares of harmful rows",
            "",
            "One seed.",
            "",
            evidence.ratios(),
            "",
            "## What the papers report",
            "",
            "A tenth of the rows harmful, Llama-2-7B on SST-2, judged by a classifier of harm: for orientation only.",
            "Each stands beside the plain fine-tuning of its own table; these differ as much as the methods do.",
            "",
            evidence.published(),
            "",
            "## Every strength that was tried",
            "",
            "On validation prompts, which the tables above do not ask. The rule: the lowest harmful score among the",
            "strengths that keep at least half of the accuracy that the undefended run at the same rate gains over the",
            "aligned start; where none does, the highest accuracy.",
            "",
            evidence.search(),
        ]
    )


def service_policy() -> str:
    """Every key of a server's policy, as `moored serve --explain-policy` prints it."""
    title, rest = policy_reference.reference().split("\n", 1)
    return (
        f"{title}\n\nGenerated from the models of `moored.service.policy` by `docs/generate.py`; do not edit.\n{rest}"
    )


def every_defence() -> str:
    """The overview, with links as they are from the README."""
    return evidence.overview().replace("](", "](docs/")


TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {
        "best": evidence.best,
        "every": every_defence,
        "demo": demo,
        "methods": methods,
        "support": support,
    },
    HERE / "repairs.md": {"strengths": repaired.strengths, "ratios": repaired.ratios, "safer": repaired.safer},
}
"""Pages written by hand with generated tables in them, each between a pair of markers."""


def filled(page: Path) -> str:
    """A page with its generated tables."""
    text = page.read_text()
    for name, make in TABLES[page].items():
        before, start, rest = text.partition(f"<!-- table:{name} -->\n")
        _, end, after = rest.partition(f"<!-- /table:{name} -->")
        if not (start and end):
            raise SystemExit(f"{page.name} has no place for the table {name!r} (<!-- table:{name} --> and its end)")
        text = f"{before}{start}\n{make().strip()}\n\n{end}{after}"
    return text


PAGES: dict[Path, Callable[[], str]] = {
    HERE / "paper_index.md": paper_index,
    HERE / "costs.md": costs,
    HERE / "evidence.md": measured,
    HERE / "repairs.svg": repaired.picture,
    HERE / "service_policy.md": service_policy,
    **{page: partial(filled, page) for page in TABLES},
}


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
