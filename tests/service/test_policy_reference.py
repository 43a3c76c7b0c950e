# SPDX-License-Identifier: Apache-2.0
"""The policy's reference names every key that a policy can hold, and nothing is left for a reader to guess."""

import json
import tomllib

import pytest

from moored.service.policy import Gate, Limits, Policy, Screen, default_policy
from moored.service.policy_reference import reference


@pytest.fixture(scope="module")
def text():
    return reference()


def keys(schema):
    return {name for part in [schema, *schema["$defs"].values()] for name in part.get("properties", {})}


def test_every_key_is_there(text):
    sections = {"models", "limits", "screen", "defend", "audit", "repair", "gate"}
    for name in keys(Policy.model_json_schema()) - sections:
        assert f"- `{name}`: " in text
    for name in sections:
        assert f"## `[{name}" in text
    assert "anything" not in text.partition("## The default")[0].replace("obeys anything", "")


@pytest.mark.parametrize("part", [Gate, Limits, Screen])
def test_every_default_is_the_one_that_holds(text, part):
    for name, field in part.model_fields.items():
        line = next(line for line in text.splitlines() if line.startswith(f"- `{name}`: "))
        shown = "default none" if field.default is None else f"default `{json.dumps(field.default)}`"
        assert f"{shown}." in line


def test_the_default_that_it_shows_is_the_default(text):
    shown = text.rpartition("```toml\n")[2].partition("```")[0]
    assert tomllib.loads(shown) == tomllib.loads(default_policy())
