# SPDX-License-Identifier: Apache-2.0
"""A report card for people: one HTML file that needs nothing else, no script, no request. It reads only the card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moored.report import svg
from moored.report.html import CAVEATS
from moored.report.record import Share
from moored.report.table import NOTHING, estimate

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""To be sent with a card: it may do nothing but show itself."""

COLUMNS = {"before": "Before", "tuned": "Tuned", "repaired": "Repaired"}
_ARROWS = {"lower": "↓", "higher": "↑"}
_PEOPLE = {"approve": "approved it", "refuse": "refused it", "override": "overrode the gate"}


def page(signed: Mapping[str, Any]) -> str:
    """The card as HTML.

    Args:
        signed: a card with its signature.
    """
    card = signed["card"]
    environment = Environment(
        loader=PackageLoader("moored.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": moment, "yaml": _yaml}
    columns = [column for column in COLUMNS if any(column in task["numbers"] for task in card["tasks"])]
    verdict, tone = standing(card)
    return environment.get_template("job_card.html.j2").render(
        card=card,
        signature=signed["signature"],
        verdict=verdict,
        tone=tone,
        sentence=_sentence(card),
        people=[_person(entry) for entry in card["people"]],
        overridden=any(entry["what"] == "override" for entry in card["people"])
        and not (card["decision"] and card["decision"]["passed"]),
        checks=[check_cells(check) for check in card["decision"]["checks"]] if card["decision"] else [],
        heads=["Task", *(COLUMNS[column] for column in columns)],
        tasks=[_task(task, columns) for task in card["tasks"]],
        judges=[[task["title"], task["judge"] or NOTHING, task["version"], task["data"]] for task in card["tasks"]],
        rows=_rows(card["data"]),
        chains=[[title, card["method"]["chains"][name]] for name, title in COLUMNS.items() if name in _chains(card)],
        fired=_fired(card["method"]) if card["method"] else [],
        comparisons=card["answers"],
        caveats=CAVEATS,
        plot_style=Markup(svg.STYLE),
    )


def standing(card: Mapping[str, Any]) -> tuple[str, Literal["good", "bad", "amber"]]:
    """Where a job's model stands, in a few words, and in which colour they are said.

    Args:
        card: of a signed card, its `card`.
    """
    last = card["people"][-1]["what"] if card["people"] else ""
    decision = card["decision"]
    if last == "override":
        whom = "a person" if decision and decision["passed"] else "the gate"
        return f"Refused by {whom}, served by override", "amber"
    if last == "refuse":
        return "Refused by a person", "bad"
    if decision is None:
        return "Not audited, not served", "bad"
    if not decision["passed"]:
        return ("Refused" if decision["outcome"] == "refused" else "Refused: cannot be decided"), "bad"
    if last != "approve" and card["policy"]["rules"].get("gate", {}).get("approval"):
        return "Passed, waits for a person", "amber"
    return "Passed", "good"


def moment(at: int) -> str:
    """Seconds since 1970 as `2026-11-21 10:00 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _sentence(card: Mapping[str, Any]) -> str:
    if card["decision"]:
        return str(card["decision"]["sentence"])
    said = (card["job"]["error"] or {}).get("message", "")
    return f"No audit was made, so nothing is served. {said}".strip()


def _person(entry: Mapping[str, Any]) -> dict[str, str]:
    what = _PEOPLE.get(entry["what"], entry["what"])
    return {"who": entry["by"], "what": what, "at": moment(entry["at"]), "why": entry["reason"]}


def check_cells(check: Mapping[str, Any]) -> list[str]:
    """One row of the gate: what, measured, n, budget, verdict.

    Args:
        check: of a decision, as plain JSON.
    """
    if check["undecided"]:
        return [check["what"], NOTHING, "", _budget(check), f"✗ {check['undecided']}"]
    sign = "" if check["unit"] == "%" else "+"
    value = f"{check['measured']:{sign}.1f}"
    if check["low"] is not None and check["high"] is not None:
        value += f" [{check['low']:.1f}, {check['high']:.1f}]"
    return [check["what"], value, str(check["n"]), _budget(check), "✓ kept" if check["ok"] else "✗ broken"]


def _budget(check: Mapping[str, Any]) -> str:
    return f"{check['budget']:g} {check['unit']}"


def _task(task: Mapping[str, Any], columns: list[str]) -> list[str]:
    shares = [Share.model_validate(task["numbers"][name]) if name in task["numbers"] else None for name in columns]
    unit = next((share.unit for share in shares if share), "%")
    return [f"{task['title']} {_ARROWS[task['better']]} {unit}", *(estimate(share, n=True) for share in shares)]


def _chains(card: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(card["method"]["chains"]) if card["method"] else {}


def _rows(data: Mapping[str, Any]) -> list[list[str]]:
    """What the screen found, category by category."""
    kinds = ("noted", "flagged", "dropped")
    names = sorted({name for kind in kinds for name in data[kind]})
    return [[name, *(str(data[kind].get(name, 0)) for kind in kinds)] for name in names]


def _fired(method: Mapping[str, Any]) -> list[str]:
    """What shows that the defences and repairs acted."""
    acted = [
        f"{name} acted {one['count']} times{_sized(one)}" if one["count"] else f"{name} never acted"
        for name, one in method["fired"].items()
    ]
    return acted + [f"{one['method']} changed {one['changed']} of {one['total']} matrices" for one in method["repairs"]]


def _sized(fired: Mapping[str, Any]) -> str:
    mean = math.nan if fired["mean"] is None else fired["mean"]
    return f", mean {mean:.3g} {fired['unit']}".rstrip() if math.isfinite(mean) else ""


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
