# SPDX-License-Identifier: Apache-2.0
"""Which requests ask for harm: patterns of an act and its object, by category.

A rule is a pattern over normalised text (lower case, straight quotes, single
spaces). Repetitions are bounded and so is the text that is read, so no input is slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from moored.service.screening.harm_to_people import TO_PEOPLE
from moored.service.screening.harm_to_things import TO_THINGS
from moored.service.screening.harm_words import OPENERS

VERSION = "1"
"""Raised when what is found can change."""

_READ = 2000
"""Characters that are read at each end of a text: a request stands at one of them."""
_MARKS = str.maketrans(dict.fromkeys("’‘ʼ´`", "'") | dict.fromkeys("“”«»", '"') | dict.fromkeys("–—‑", "-"))

_COMPILED = [(name, re.compile(pattern)) for name, patterns in (TO_PEOPLE | TO_THINGS).items() for pattern in patterns]
_GATES = [re.compile(OPENERS[pattern.pattern]) if pattern.pattern in OPENERS else None for _, pattern in _COMPILED]
_ALWAYS = frozenset(number for number, gate in enumerate(_GATES) if gate is None)
_WORD = re.compile(r"\w+")

_KINDLY = re.compile(
    r"\b(?:prevent(?:s|ing|ion)?|protect(?:s|ing|ion)?(?: (?:myself|yourself|my|our|your|against|from"
    r"|\w+))?|defend against"
    r"|guard against|recogni[sz]e|spot|report(?:s|ing)? (?:an?|the|someone|suspected)|detect(?:s|ing)?|combat(?:s|ing)?"
    r"|raise awareness|dangers of|risks of|signs of|symptoms of|history of|definition of|what (?:is|are"
    r"|was|were|does|did)(?! (?:the|a|an|some|your)(?: \w+)? (?:ways?|steps?|methods?|tips|strateg\w+))"
    r"|who (?:is|was|were)|when (?:did|was|were)|why (?:is|are|do|does|did|was|were)|laws? (?:about"
    r"|against|on)|illegal to"
    r"|(?:help|support|counsel\w*) (?:for )?(?:\w+ )?(?:victims?|survivors?)|recover(?:s|ing|y)? from"
    r"|victims? of|survivors? of"
    r"|cope|coping|stop (?:my|a|our|someone from|people from) (?:\w+ )?(?:being|getting|from)|accused of"
    r"|is it (?:wrong|legal|bad|ok))\b"
)
"""What a request for help, or for knowledge about a harm, says; it must come before the harm."""


def asks_for(text: str) -> Iterator[tuple[str, str]]:
    """The categories of harm that a text asks for, each with the words that say so.

    Args:
        text: a request, or the first words of an answer.
    """
    ends = text if len(text) <= 2 * _READ else f"{text[:_READ]} . {text[-_READ:]}"
    plain = " ".join(ends.translate(_MARKS).casefold().split())
    tried = _ALWAYS.union(*map(_opened_by, set(_WORD.findall(plain))))
    seen: set[str] = set()
    for number in sorted(tried):
        name, pattern = _COMPILED[number]
        found = None if name in seen else pattern.search(plain)
        if found and not _KINDLY.search(plain[max(0, found.start() - 60) : found.end()]):
            seen.add(name)
            yield name, found[0][:80]


@lru_cache(maxsize=1 << 16)
def _opened_by(word: str) -> frozenset[int]:
    """The patterns whose acts can begin with this word."""
    return frozenset(number for number, gate in enumerate(_GATES) if gate and gate.fullmatch(word))
