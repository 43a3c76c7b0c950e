# SPDX-License-Identifier: Apache-2.0
"""Every key of a policy, read from the models that check it.

For `docs/service_policy.md`: markdown that reads well in a terminal too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from moored.service.policy import Policy, default_policy

_TABLES = {
    "Limits": "limits",
    "Screen": "screen",
    "Defend": "defend",
    "Audit": "audit",
    "Mend": "repair",
    "Gate": "gate",
}
"""Where a part stands in the file."""
_PARTS = {
    "Offered": "[models.<name>]",
    "DefendDpo": "[defend.dpo]",
    "Align": "align",
    "TrainingSpec": "training",
    "RepairWith": "repair_with",
    "Twin": "twin",
    "_Data": "data",
    "Method": "method",
}
"""Parts that stand inside others, by what they are called here."""
_WORDS = {
    "string": "text",
    "number": "number",
    "integer": "whole number",
    "boolean": "true or false",
    "object": "table",
    "null": "none",
}

_HEAD = """# The policy, key by key

One TOML file, `policy.toml` in the server's home, says what is on offer and what every job must go through.
`moored serve` writes it on its first start and reads it again when it changes; where it is wrong, the key is named, and
the policy before stays in force. A job keeps the policy under which it was made; its SHA-256 (over the values with the
defaults filled in, so comments do not count) stands on every report card.

An unknown key is an error everywhere. A key without a default must be given."""

_ACTIONS = """What a finding in an upload does: `report` it; `flag` the row (it is trained on, and the card says so);
`drop` the row; or `block` the whole job."""

_GATE = """The gate fails closed: a task that the policy names and that was not measured, could not be judged, or cannot
be compared with the start is a refusal, whatever the budgets are. A budget of 100 is kept by everything that was
measured."""


def reference() -> str:
    """The whole text, in markdown."""
    schema = Policy.model_json_schema()
    parts = schema["$defs"]
    top = {name: prop for name, prop in schema["properties"].items() if name == "name"}
    out = [_HEAD, "## At the top", *_keys({**schema, "properties": top})]
    out += ["## `[models.<name>]`", *_described(parts["Offered"], schema["properties"]["models"])]
    for part, table in _TABLES.items():
        out += [f"## `[{table}]`", *_described(parts[part], schema["properties"][table])]
        if part == "Screen":
            out.append(_ACTIONS)
        if part == "Gate":
            out.append(_GATE)
    out.append("## Parts that stand in others")
    for part, called in _PARTS.items():
        if part not in ("Offered", "Method"):
            out += [f"### {called}", *_described(parts[part])]
    out += ["### method", _first(parts["Method"]), "Their names and parameters: `moored list`."]
    out += ["## The default", f"```toml\n{default_policy().strip()}\n```"]
    return "\n\n".join(out) + "\n"


def _described(part: Mapping[str, Any], place: Mapping[str, Any] | None = None) -> Iterator[str]:
    said = (place or {}).get("description", "")
    yield " ".join(text for text in (_first(part), f"{said[:1].upper()}{said[1:]}." if said else "") if text)
    yield from _keys(part)


def _keys(part: Mapping[str, Any]) -> Iterator[str]:
    """A list entry for every key."""
    lines = []
    for name, prop in part["properties"].items():
        words = [_kind(prop), _range(prop), _default(name, prop, part.get("required", []))]
        said = prop.get("description", "")
        lines.append(f"- `{name}`: {', '.join(word for word in words if word)}.{f' {_sentence(said)}' if said else ''}")
    yield "\n".join(lines)


def _sentence(said: str) -> str:
    return f"{said[:1].upper()}{said[1:]}{'' if said.endswith('.') else '.'}"


def _first(part: Mapping[str, Any]) -> str:
    return " ".join(part.get("description", "").partition("\n\n")[0].split())


def _kind(prop: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in prop:
        return _PARTS.get(name := prop["$ref"].rpartition("/")[2]) or f"[{_TABLES[name]}]"
    if "anyOf" in prop:
        return " or ".join(dict.fromkeys(_kind(each) for each in prop["anyOf"]))
    if "enum" in prop:
        return " | ".join(f"`{value}`" for value in prop["enum"])
    if prop.get("type") == "array":
        return f"list of {_kind(prop['items'])}"
    inner = prop.get("additionalProperties")
    if prop.get("type") == "object" and isinstance(inner, Mapping):
        return f"table of {_kind(inner)}, by name"
    return _WORDS.get(prop.get("type", ""), "anything")


def _range(prop: Mapping[str, Any]) -> str:
    """The bounds, in words."""
    own = next((each for each in prop.get("anyOf", []) if each.get("type") in ("number", "integer")), prop)
    low, above = own.get("minimum"), own.get("exclusiveMinimum")
    high, below = own.get("maximum"), own.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    bounds = {"at least": low, "above": above, "at most": high, "below": below}
    return " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)


def _default(name: str, prop: Mapping[str, Any], required: list[str]) -> str:
    if name in required:
        return "no default"
    value = prop.get("default")
    if value is None:
        return "default none"
    if "$ref" in prop:
        return ""
    return f"default `{json.dumps(value)}`"


if __name__ == "__main__":
    print(reference(), end="")
