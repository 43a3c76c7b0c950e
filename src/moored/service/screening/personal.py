# SPDX-License-Identifier: Apache-2.0
"""E-mail addresses, phone numbers and account numbers, checked by their own rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from moored.data.schema import Example
from moored.errors import NeedsError
from moored.service.screening.base import ByRow, texts

_EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,5}([a-zA-Z]{2,24})\b")
_NOBODYS = re.compile(r"@(?:[\w-]+\.)*(?:example|test|invalid|localhost)(?:\.\w+)?$", re.IGNORECASE)
"""Domains that are nobody's (RFC 2606)."""
_PHONE = re.compile(r"(?<![\w.+-])(?:\+\d[\d ().\-/]{7,20}\d|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<!\d)(?<!\d\.)(?:\d[ -]?){12,18}\d(?!\d|\.\d)")
_CARD_HEADS = ("4", "51", "52", "53", "54", "55", "22", "23", "24", "25", "26", "27", "34", "37", "6011", "65", "35")
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")


class Personal(ByRow):
    """E-mail addresses, phone numbers, card and bank account numbers, US social security numbers.

    Numbers count only if their own check digits and rules accept them (phonenumbers, python-stdnum): arithmetic has
    many long numbers. A finding names the kind and the place, and nothing of the number.
    """

    name: ClassVar[str] = "personal"
    version: ClassVar[str] = "1"

    def look(self, row: Example) -> Iterator[tuple[str, str]]:
        """The kinds of personal data in every text of a row."""
        for place, text in texts(row):
            yield from ((kind, f"{place} has one: {kind}") for kind in _kinds(text))


def _kinds(text: str) -> Iterator[str]:
    if "@" in text and any(not _NOBODYS.search(found[0]) for found in _EMAIL.finditer(text)):
        yield "e-mail address"
    if any(_is_phone(found[0]) for found in _PHONE.finditer(text)):
        yield "phone number"
    if any(_is_valid("iban", found[0]) for found in _IBAN.finditer(text)):
        yield "bank account number"
    if any(_is_card(found[0]) for found in _CARD.finditer(text)):
        yield "card number"
    if any(_is_valid("us.ssn", found[0]) for found in _SSN.finditer(text)):
        yield "social security number"


def _is_phone(text: str) -> bool:
    try:
        import phonenumbers
    except ImportError as error:
        raise NeedsError("screening for personal data needs phonenumbers: pip install 'moored[serve]'") from error
    try:
        number = phonenumbers.parse(text, None if text.startswith("+") else "US")
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_valid_number(number)


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return digits.startswith(_CARD_HEADS) and len(set(digits)) > 2 and _is_valid("luhn", digits)


def _is_valid(form: str, text: str) -> bool:
    from importlib import import_module

    try:
        return bool(import_module(f"stdnum.{form}").is_valid(text))
    except ImportError as error:
        raise NeedsError("screening for personal data needs python-stdnum: pip install 'moored[serve]'") from error
