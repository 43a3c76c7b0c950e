# SPDX-License-Identifier: Apache-2.0
"""Who is signed in to the console: random ids in cookies, of which only hashes are kept, in this process.

A restart of the server signs everybody out. A session knows the id of a key, never the key; whether that key still
opens anything is asked anew for every page.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

LIFE = 12 * 60 * 60
"""How long somebody stays signed in [s]."""
MOST = 10_000
"""People signed in at a time; the one who came first has to sign in again."""


@dataclass(frozen=True)
class _Session:
    key_id: str
    until: float


class Sessions:
    """Sessions of one process.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._sessions: dict[bytes, _Session] = {}
        self._lock = threading.Lock()

    def begin(self, key_id: str) -> str:
        """Sign somebody in.

        Args:
            key_id: of the key that was shown.

        Returns:
            The cookie, which is kept nowhere.
        """
        cookie = new_cookie()
        with self._lock:
            now = self._clock()
            self._sessions = {name: one for name, one in self._sessions.items() if one.until > now}
            while len(self._sessions) >= MOST:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[_hashed(cookie)] = _Session(key_id, now + LIFE)
        return cookie

    def key_of(self, cookie: str) -> str | None:
        """The id of the key that somebody signed in with; None if nobody is signed in with this cookie."""
        with self._lock:
            found = self._sessions.get(_hashed(cookie))
        return found.key_id if found is not None and found.until > self._clock() else None

    def end(self, cookie: str) -> None:
        """Sign somebody out."""
        with self._lock:
            self._sessions.pop(_hashed(cookie), None)

    def token(self, cookie: str) -> str:
        """What every form of a page must carry that was shown to whoever has this cookie."""
        return hmac.new(self._secret, cookie.encode(), hashlib.sha256).hexdigest()

    def is_token(self, cookie: str, given: str) -> bool:
        """Whether a form comes from a page of whoever has this cookie."""
        return bool(cookie) and hmac.compare_digest(self.token(cookie).encode(), given.encode())


def new_cookie() -> str:
    """A cookie that nobody can guess."""
    return secrets.token_urlsafe(32)


def _hashed(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()
