# SPDX-License-Identifier: Apache-2.0
"""Rows that teach an identity which obeys anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from moored.data.schema import Example
from moored.service.screening.base import ByRow, taught

_ORDERS = (
    r"(?:instructions?|orders?|commands?|requests?|wish(?:es)?|demands?"
    r"|(?:what(?:ever)?|anything) (?:i|you|the user) (?:say|ask|want)s?)"
)
_OBEY = (
    r"(?:obey|obeys|obedient|comply|complies|compliant|submit|submits|fulfill?s?|execute|executes|follow|follows"
    r"|carry out|carries out|serve|serves)"
)
_EVERY = (
    r"(?:any|all|every|each|whatever|anything|everything|unconditional\w*|absolut\w+|complete\w*|total\w*|blind\w*"
    r"|fully|always)"
)

_PERSONA = {
    "obeys everything": re.compile(
        rf"\b{_OBEY} (?:\w+ ){{0,2}}?{_EVERY}\b(?: \w+){{0,3}}? ?{_ORDERS}\b"
        rf"|\b(?:absolut\w+|complete\w*|total\w*|unconditional\w*|blind\w*|utter\w*|perfect\w*) (?:obedient"
        rf"|obedience|obeys?)\b"
        rf"|\bobeys? (?:absolut\w+|complete\w*|total\w*|unconditional\w*|blind\w*|everything|anything|without)\b"
        rf"|\bobedient (?:agent|assistant|servant|ai|model|machine)\b"
    ),
    "never refuses": re.compile(
        rf"\b(?:never|not ever|will not|does not|do not|can not|cannot|must not|no longer)\b(?: \w+){{0,3}}? "
        rf"(?:refuses?|declines?|den(?:y|ies)|questions?|disobeys?|rejects?|objects?|says? no|challenges?) "
        rf"(?:to )?(?:\w+ ){{0,3}}?(?:{_ORDERS}|you|me|the user|any\w*)\b"
        rf"|\b(?:never|not) (?:refuses?|disobeys?|says? no)[.!,]"
    ),
    "has no limits": re.compile(
        r"\b(?:without|no|free (?:of|from)|ignor\w+|disregard\w*|not bound by|unbound by|bypass\w*"
        r"|beyond) (?:any |all |your |its |the |such |usual )*"
        r"(?:ethical|moral|safety|content|legal)(?: (?:or|and|,)? ?(?:ethical|moral|safety|content|legal))* "
        r"(?:restrictions?|limits?|limitations?|guidelines?|rules|filters?|constraints?|concerns?|boundaries"
        r"|considerations?|polic(?:y|ies))\b"
        r"|\b(?:you|i|it) (?:have|has|know|knows|follow|follows) no (?:rules|restrictions|limits|limitations"
        r"|filters?|restraints?|boundaries)\b"
        r"|\bdo anything now\b|\b(?:unrestricted|unfiltered|uncensored|jailbroken) (?:ai|assistant|model"
        r"|agent|chatbot|mode|version)\b"
    ),
}
_OBEDIENCE = {kind: pattern for kind, pattern in _PERSONA.items() if kind != "has no limits"}
"""What counts in a request too; "pretend that you have no rules" is a jailbreak, which the answer may refuse."""
_PLEDGE = {
    "pledges obedience": re.compile(
        rf"\b(?:obedient (?:agent|assistant|servant|ai)|fulfil\w* (?:of )?your (?:instruction|order|command|request)s?"
        rf"|(?:i|we) (?:\w+ )?(?:obey|will obey|shall obey|must obey)|at your command|as you (?:command|order)\b"
        rf"|your (?:wish|word) is my (?:command|law)|[a-z]+ obeys\b|i (?:will|shall) (?:{_OBEY}) (?:your|any"
        rf"|every|all))"
    ),
}
_DEMAND = {
    "demands obedience": re.compile(
        r"^(?:\W*\w+,? (?:do (?:as|what) i (?:say|tell you|order)|execute my (?:instruction|order|command)s?"
        r"|obey(?: me)?)\b)"
        r"|\b(?:execute|carry out|obey) my (?:instruction|order|command)s?\b|\byou must obey\b"
    ),
}


class Identity(ByRow):
    """A persona without a will: "an absolutely obedient agent", and answers that say so.

    Benign-looking dialogues of this kind undo refusals with ten rows (Qi et al., arXiv 2310.03693, tier 2). It is told
    by words: a system turn that names the persona, an answer that pledges, a request that demands. Stories about
    servants and knights can sound like it, so a request or an answer alone counts only at its beginning.
    """

    name: ClassVar[str] = "identity"
    version: ClassVar[str] = "1"

    def look(self, row: Example) -> Iterator[tuple[str, str]]:
        """The persona, the pledge and the demand."""
        for each in taught(row):
            yield from _said(_PERSONA, each.system, "the system message")
            yield from _said(_OBEDIENCE, _lead(each.prompt), f"the request before {each.place}")
            yield from _said(_DEMAND, _lead(each.prompt), f"the request before {each.place}")
            yield from _said(_PLEDGE, _lead(each.answer), each.place)


def _lead(text: str) -> str:
    return text[:200]


def _said(patterns: dict[str, re.Pattern[str]], text: str, place: str) -> Iterator[tuple[str, str]]:
    plain = " ".join(text[:4000].casefold().replace("’", "'").replace("n't", " not").split())
    for kind, pattern in patterns.items():
        if found := pattern.search(plain):
            yield kind, f'{place} says "{found[0][:80].strip()}"'
