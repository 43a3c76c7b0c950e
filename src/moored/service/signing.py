# SPDX-License-Identifier: Apache-2.0
"""The server's signature: one Ed25519 key in the home, over JSON in its canonical form.

Canonical is: keys sorted, no spaces, ASCII, no NaN. What is signed is a line `moored:<kind>` and then that text, so
that a signature of one kind of thing is none of another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moored.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = "signing.key"
ALGORITHM = "Ed25519"
_PUBLIC_BYTES = 32


def canonical(value: Any) -> bytes:
    """JSON that looks the same however it was made.

    Raises:
        DataError: the value is no JSON (NaN and infinities are none).
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"this cannot be signed, because it is no JSON: {error}") from error


def read_json(text: str | bytes) -> Any:
    """JSON of which every reader sees the same: a key that stands twice is an error, and so is NaN.

    Raises:
        DataError: it is no such JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON that can be trusted: {error}") from error


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """The private key of a server.

    Args:
        private: never leaves the process.
    """

    private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def of(cls, home: Path) -> SigningKey:
        """The key of a home; made, once and whole, if there is none.

        Raises:
            ConfigError: the file is no such key, or others than its owner may read it.
        """
        path = home / KEY
        if not path.exists():
            _make(path)
        return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> SigningKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        if path.stat().st_mode & 0o077:
            raise ConfigError(f"others than its owner may read {path}: `chmod 600` it, and ask who has read it")
        try:
            private = load_pem_private_key(path.read_bytes(), password=None)
        except ValueError as error:
            raise ConfigError(f"{path} is no private key; put the one from your backup there") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(f"{path} must be an Ed25519 key; got {type(private).__name__}")
        return cls(private=private)

    @property
    def public(self) -> str:
        """The public key: its 32 bytes in base64."""
        return base64.b64encode(self.private.public_key().public_bytes_raw()).decode()

    def sign(self, kind: str, value: Any) -> dict[str, str]:
        """The signature of a value, with all that is needed to check it but trust in the key.

        Args:
            kind: what it is, for example "card"; a signature of one kind is none of another.
            value: plain JSON.
        """
        made = self.private.sign(_signed(kind, value))
        return {
            "algorithm": ALGORITHM,
            "key_id": key_id(self.public),
            "public_key": self.public,
            "value": base64.b64encode(made).decode(),
        }


def key_id(public: str) -> str:
    """A short name of a public key, to compare by eye: 16 hex digits of its hash."""
    return hashlib.sha256(_public_bytes(public)).hexdigest()[:16]


def holds(kind: str, value: Any, signature: Mapping[str, Any], public: str) -> bool:
    """Whether a value was signed by the owner of a public key.

    Args:
        kind: as in `SigningKey.sign`.
        value: plain JSON.
        signature: what `SigningKey.sign` gave. The key in it is not trusted, only compared.
        public: the key that is trusted, in base64.

    Raises:
        ConfigError: `public` is no public key.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    trusted = Ed25519PublicKey.from_public_bytes(_public_bytes(public))
    named = {"algorithm": ALGORITHM, "key_id": key_id(public), "public_key": public}
    if not isinstance(signature, Mapping) or set(signature) != {*named, "value"}:
        return False
    value_given = signature["value"]
    if any(signature[name] != said for name, said in named.items()) or not isinstance(value_given, str):
        return False
    try:
        given = base64.b64decode(value_given, validate=True)
        trusted.verify(given, _signed(kind, value))
    except (binascii.Error, InvalidSignature, DataError):
        return False
    return base64.b64encode(given).decode() == value_given  # one spelling only


def _signed(kind: str, value: Any) -> bytes:
    return f"moored:{kind}\n".encode() + canonical(value)


def _public_bytes(public: str) -> bytes:
    try:
        raw = base64.b64decode(public, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _PUBLIC_BYTES:
        raise ConfigError(f"a public key is {_PUBLIC_BYTES} bytes in base64; got {public[:60]!r}")
    return raw


def _make(path: Path) -> None:
    """A new key, linked into place whole; if another process was first, its key stays."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path.parent.mkdir(parents=True, exist_ok=True)
    text = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            return
    finally:
        part.unlink(missing_ok=True)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return made


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")
