# SPDX-License-Identifier: Apache-2.0
"""What a user may ask of the policy for a job: to be stricter, never the other way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from moored.errors import ConfigError, unknown
from moored.service.policy import Action, Gate, Policy, Screen
from moored.service.problems import wrong
from moored.study.recipe import validated

PARAM = "safety"
_ACTIONS = get_args(Action)
_KINDS = ("harmful", "identity", "encoded", "secrets", "personal", "duplicates")

Stricter = Callable[[Any, Any], bool]
"""Whether the first value is at least as strict as the second."""


def _at_most(asked: Any, own: Any) -> bool:
    return bool(asked <= own)


_GATE: dict[str, Stricter] = {
    "harmful_score": _at_most,
    "harmful_increase": _at_most,
    "over_refusal_increase": _at_most,
    "utility_loss": _at_most,
    "by": lambda asked, own: asked in (own, "interval"),
    "approval": lambda asked, own: asked or not own,
}
_SCREEN: dict[str, Stricter] = {
    **dict.fromkeys(_KINDS, lambda asked, own: _ACTIONS.index(asked) >= _ACTIONS.index(own)),
    "most_flagged": _at_most,
}


def tightened(policy: Policy, asked: Any) -> Policy:
    """The policy with what a user asks for.

    Args:
        policy: the operator's.
        asked: for example `{"gate": {"harmful_score": 5}, "screen": {"harmful": "block"}}`; None asks nothing.

    Raises:
        ApiProblem: 400, unknown, malformed, or not as strict as the policy.
    """
    if asked is None:
        return policy
    if not isinstance(asked, Mapping):
        raise wrong(f"'{PARAM}' must be an object with 'gate' and 'screen'.", PARAM, "invalid_type")
    for name in asked:
        if name not in ("gate", "screen"):
            raise wrong(_nearest("part", name, ("gate", "screen")), f"{PARAM}.{name}", "unknown_parameter")
    gate = _part(Gate, policy.gate, asked.get("gate", {}), _GATE, f"{PARAM}.gate")
    screen = _part(Screen, policy.screen, asked.get("screen", {}), _SCREEN, f"{PARAM}.screen")
    return policy.model_copy(update={"gate": gate, "screen": screen})


def _part(model: type[Any], own: Any, asked: Any, known: Mapping[str, Stricter], param: str) -> Any:
    if not isinstance(asked, Mapping):
        raise wrong(f"'{param}' must be an object.", param, "invalid_type")
    for name in asked:
        if name not in known:
            raise wrong(_nearest("key", name, known), f"{param}.{name}", "unknown_parameter")
    try:
        made = validated(model, own.model_dump(mode="json") | dict(asked), param)
    except ConfigError as error:
        raise wrong(str(error), param, "invalid_value") from error
    for name in asked:
        if not known[name](getattr(made, name), getattr(own, name)):
            said = (
                f"'{param}.{name}' may only be stricter than this server's policy, which says {getattr(own, name)!r}."
            )
            raise wrong(said, f"{param}.{name}", "policy_not_stricter")
    return made


def _nearest(what: str, name: Any, known: Iterable[str]) -> str:
    return f"{str(unknown(what, str(name), known)).capitalize()}."
