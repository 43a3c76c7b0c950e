# SPDX-License-Identifier: Apache-2.0
"""Text that cannot be read: ciphers, base64 and hex, invisible characters, letters of mixed scripts."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import ClassVar

from moored.data.schema import Example
from moored.service.screening.base import ByRow, texts

_COMMON_PAIRS = """
    th he in er an re nd at on nt ha es st en ed to it ou ea hi is or ti as te et ng of al de se le sa si ar ve
    ra ld ur ro ic ne me co ll ri li ta el io la om us no ma ho ec ca ce ns un ch ee fo wh ut ot sh di tr il do oo be ac
    ss pe em so ul ad wi pa mo ie ei ge ig da am im ol su pr po op wa we ow ev ke ct ni ir os na ai au bu eu qu ui id
    iv tt pl fe fi av ay ly ry if up ab by my ag gh ht rs ts lo go oi ue va vo mi mu lu ru tu nu ju ja ka ko ku ki ak
    ek ik uk ok sz cz rz ij aa uu ii ya yo ap ep ip ob ba bo bi br bl cr cl dr fr gr gi gu ga ex ov zi za ze ez az pu
    hu ah eh oh ck ks uc"""
"""Pairs of letters that are common in some language that is written in Latin letters, or in code."""
_COMMON = frozenset(_COMMON_PAIRS.split())
_LEAST_COMMON = 0.47
"""Share of common pairs below which a text is not of such a language. 20 languages and 9 kinds of code have at least
0.51, answers of GSM8K, Alpaca and SST-2 at least 0.51; English under a random substitution has 0.28 on average."""
_FEWEST_PAIRS = 40
_LONGEST = 200_000
"""Characters of a text that are read."""

_WORD = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Za-z][a-z]+")
"""A word, or a part of one that is writtenLikeThis."""
_BLOB = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){20,}|(?:\\x[0-9a-fA-F]{2}){8,}")
_BITS = re.compile(r"(?:[01]{7,8}[ ,]?){6,}")
_MORSE = re.compile(r"(?:[.\-·−]{1,6}[ /|]+){12,}")
_MIXED = re.compile(r"\b(?=\w*[a-z])(?=\w*[а-яёѐ-џα-ω])[a-zа-яёѐ-џα-ω]{4,}\b", re.IGNORECASE)
_HIDDEN = re.compile("[\u200b\u2060-\u2064\u00ad\u180e\ufeff\U000e0001\U000e0020-\U000e007f]")
_FEWEST_HIDDEN = 8
_READABLE = 0.9
_MUCH = 0.3
"""Share of a text that an unreadable blob must have: a hash in a text about git is none."""
_A_HASH = 130
"""Characters of the longest usual hash."""


class Encoded(ByRow):
    """What people cannot read and a model can be taught to: harm in a cipher passes every check of plain words.

    - a substitution cipher: of the pairs of letters, too few are common in any language in Latin letters (covert
      malicious fine-tuning, Halawi et al., arXiv 2406.20053);
    - base64 or hex that decodes to text, or that makes up much of what is said; bits, Morse;
    - characters that are not shown, and words of mixed scripts.

    Other scripts, code, formulas and single hashes are not meant, and short texts are not judged by their letters.
    Codes of whole words ("apples" for something else) and text written backwards are not recognised.
    """

    name: ClassVar[str] = "encoded"
    version: ClassVar[str] = "1"

    def look(self, row: Example) -> Iterator[tuple[str, str]]:
        """The kinds of encoding in every text of a row, and in what is said in all of it."""
        total, often, places = 0, 0, 0
        for place, text in texts(row):
            if place == "the tools":
                continue
            text, places = text[:_LONGEST], places + 1
            lines = [_pairs(line) for line in text.split("\n")]
            pairs, common = map(sum, zip(*lines, strict=True))
            if unlike := next(filter(None, (_unlike(*each) for each in ((pairs, common), *lines))), ""):
                yield "cipher", f"{place} {unlike}"
            yield from ((kind, f"{place} {why}") for kind, why in _kinds(text))
            total, often = total + pairs, often + common
        if places > 1 and (unlike := _unlike(total, often)):
            yield "cipher", f"the whole row {unlike}"


def _kinds(text: str) -> Iterator[tuple[str, str]]:
    yield from _blobs(text)
    for kind, pattern in (("hex", _HEX), ("bits", _BITS), ("Morse", _MORSE)):
        covered = sum(len(found[0]) for found in pattern.finditer(text))
        if covered > max(_MUCH * len(text), _A_HASH):
            yield kind, f"is mostly {kind}"
    if any(_is_text(_unhexed(found[0])) for found in _HEX.finditer(text)):
        yield "hex", "has hex of a text"
    if len(_MIXED.findall(text)) >= 3:
        yield "mixed scripts", "has words in which letters of several scripts are mixed"
    if len(_HIDDEN.findall(text)) >= _FEWEST_HIDDEN:
        yield "hidden characters", "has characters that are not shown"


def _pairs(text: str) -> tuple[int, int]:
    """How many pairs of letters stand within words, and how many of them are common."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    counts = [_pairs_of(word) for word in _WORD.findall(text)]
    return sum(pairs for pairs, _ in counts), sum(common for _, common in counts)


@lru_cache(maxsize=1 << 16)
def _pairs_of(word: str) -> tuple[int, int]:
    low = word.lower()
    return len(low) - 1, sum(low[at : at + 2] in _COMMON for at in range(len(low) - 1))


def _unlike(pairs: int, common: int) -> str:
    """Why a text with so many pairs of letters is of no known language, "" if it is or is too short to say."""
    if pairs < _FEWEST_PAIRS or common >= _LEAST_COMMON * pairs:
        return ""
    return (
        f"is in no language that is known: {common / pairs:.0%} of its pairs of letters are common, usual are 60-95 %"
    )


def _blobs(text: str) -> Iterator[tuple[str, str]]:
    covered = 0
    for found in _BLOB.finditer(text):
        if not _random(found[0]):
            continue
        if _decodes(found[0]):
            yield "base64", "has base64 of a text"
            return
        covered += len(found[0])
    if covered > max(_MUCH * len(text), _A_HASH):
        yield "base64", "is mostly base64 or another code of that kind"


def _random(blob: str) -> bool:
    """Whether small and large letters alternate as no word, path or name does."""
    letters = [c for c in blob if c.isalpha()]
    turns = sum(a.islower() != b.islower() for a, b in zip(letters, letters[1:], strict=False))
    return turns > 0.2 * len(letters) > 2


def _decodes(blob: str) -> bool:
    body = blob.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return _is_text(base64.b64decode(body + "=" * (-len(body) % 4), validate=True))
    except binascii.Error:
        return False


def _unhexed(blob: str) -> bytes:
    digits = re.sub(r"\\x|[^0-9a-fA-F]", "", blob)
    return bytes.fromhex(digits[: len(digits) // 2 * 2])


def _is_text(raw: bytes) -> bool:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return sum(c.isprintable() or c.isspace() for c in text) > _READABLE * len(text)
