# SPDX-License-Identifier: Apache-2.0
"""Keys, tokens and passwords, by the patterns of detect-secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar

from moored.data.schema import Example
from moored.errors import NeedsError
from moored.service.screening.base import ByRow, texts

_LEFT_OUT = {"Base64 High Entropy String", "Hex High Entropy String", "Public IP (ipv4)", "Secret Keyword"}
"""Guesses by entropy belong to `encoded`; an address is no secret; keywords are told more narrowly here."""
_MAYBE = re.compile(r"[A-Za-z0-9+/_=-]{16,}|://[^\s/]+:|-----BEGIN", re.ASCII)
"""Without a long word, a password in an address or a key's first line none of the patterns can match."""
_PASSWORD = re.compile(
    r"(?:password|passwd|passphrase|pwd|api[ _-]?key|secret[ _-]?key|access[ _-]?token|auth[ _-]?token)"
    r"[\"']?\s*(?:is|=|:|:=|=>)\s*[\"'`]?([^\s\"'`,;<>{}()\[\]]{8,80})",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"(?i)^(?:your|my|the|new|old|user|some|an?|input|getpass|env|os\.|process\.|request|self\.|args?\.|config|none|null"
    r"|example|changeme|password|passw0rd|secret|placeholder|required|x{3,}|\*{3,}|\.{3,}|\$)|example|placeholder|xxxx"
)


class Secrets(ByRow):
    """What lets somebody in: private keys, tokens of services by their form, passwords that stand behind the word.

    A finding names the kind and the place, and nothing of the secret.
    """

    name: ClassVar[str] = "secrets"
    version: ClassVar[str] = "1"

    def look(self, row: Example) -> Iterator[tuple[str, str]]:
        """The kinds of secrets in every text of a row."""
        for place, text in texts(row):
            if any(_looks_real(found[1]) for found in _PASSWORD.finditer(text)):
                yield "password", f"{place} has a password or key behind its name"
            if _MAYBE.search(text):
                yield from ((kind, f"{place} has what looks like one: {kind}") for kind in _kinds(text))


def _looks_real(value: str) -> bool:
    mixed = bool(re.search(r"[A-Za-z]", value)) and bool(re.search(r"[\d!@#$%^&*]", value))
    return mixed and not _PLACEHOLDER.search(value)


def _kinds(text: str) -> Iterator[str]:
    for plugin in _plugins():
        if any(pattern.search(text) for pattern in plugin.denylist):
            yield plugin.secret_type


@cache
def _plugins() -> tuple[Any, ...]:
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    except ImportError as error:
        raise NeedsError("screening for secrets needs detect-secrets: pip install 'moored[serve]'") from error
    classes: dict[str, Any] = get_mapping_from_secret_type_to_class()
    return tuple(cls() for kind, cls in sorted(classes.items()) if kind not in _LEFT_OUT)
