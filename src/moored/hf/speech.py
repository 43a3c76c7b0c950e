# SPDX-License-Identifier: Apache-2.0
"""Tokens to text, as they come: never half a character, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_UNFINISHED = "\ufffd"
_LONGEST_WAIT = 16
"""Tokens after which bytes that are no character are shown as what they are; a character takes four at most."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What can be said now.

    Args:
        text: new; "" if it is not certain yet.
        tokens: how many further tokens all text so far covers.
        stopped: a stop string came; it is in no text, and nothing follows.
    """

    text: str
    tokens: int
    stopped: bool = False


class Speech:
    """The text of one answer while its tokens come. The texts together are the decoded tokens, up to a stop string.

    Args:
        decode: text of tokens, without special ones.
        stops: strings that end the answer, none of them empty; they may span tokens.
        bare: leave out white space in front.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), *, bare: bool = False):
        self._decode, self._stops, self._bare = decode, stops, bare
        self._tokens: list[int] = []
        self._context = self._read = 0  # what is read is decoded behind some context: spaces can hang on it
        self._starts: list[int] = []
        self._settled = self._said = self._covered = 0
        self._held = ""

    def hear(self, token: int) -> Heard:
        """The next token.

        Args:
            token: its id.
        """
        self._tokens.append(token)
        self._starts.append(self._settled)
        return self._tell(self._decoded(last=False), last=False)

    def end(self) -> Heard:
        """No token follows: what was held back. Half a character at the end is left out."""
        return self._tell(self._decoded(last=True), last=True)

    def _decoded(self, *, last: bool) -> str:
        """Text that no further token changes."""
        before = self._decode(self._tokens[self._context : self._read])
        whole = self._decode(self._tokens[self._context :])
        if last:
            whole = whole.rstrip(_UNFINISHED)
        elif whole.endswith(_UNFINISHED) and len(self._tokens) - self._read < _LONGEST_WAIT:
            return ""
        fresh = whole[len(before) :]
        if fresh:
            self._context, self._read = self._read, len(self._tokens)
        if self._bare and not self._settled:
            fresh = fresh.lstrip()
        self._settled += len(fresh)
        return fresh

    def _tell(self, fresh: str, *, last: bool) -> Heard:
        self._held += fresh
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        stopped = bool(found)
        keep = len(self._held) - min(found) if found else 0 if last else self._beginning()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._said += len(text)
        covered = sum(start < self._said for start in self._starts)
        if last and not stopped:
            covered = len(self._starts)
        more, self._covered = covered - self._covered, covered
        return Heard(text=text, tokens=more, stopped=stopped)

    def _beginning(self) -> int:
        """How much at the end of what is held may become a stop string."""
        lengths = (
            length for stop in self._stops for length in range(1, len(stop)) if self._held.endswith(stop[:length])
        )
        return max(lengths, default=0)
