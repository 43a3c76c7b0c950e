# SPDX-License-Identifier: Apache-2.0
"""Signatures: of these bytes, by this key, of this kind, and nothing else."""

import base64
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moored.errors import ConfigError, DataError
from moored.service.signing import SigningKey, canonical, holds, key_id, read_json

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return SigningKey.of(tmp_path_factory.mktemp("home"))


def test_a_key_is_made_once_by_many(tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(SigningKey.of(tmp_path).public)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["signing.key"]
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600


def test_a_key_that_others_may_read_is_refused(tmp_path):
    SigningKey.of(tmp_path)
    (tmp_path / "signing.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        SigningKey.of(tmp_path)
    (tmp_path / "signing.key").write_text("no key")
    (tmp_path / "signing.key").chmod(0o600)
    with pytest.raises(ConfigError, match="no private key"):
        SigningKey.of(tmp_path)


def test_the_private_key_is_not_in_what_is_printed(key):
    assert repr(key) == "SigningKey()"


@settings(max_examples=50, deadline=None)
@given(value=plain, other=plain)
def test_a_signature_is_of_one_value_and_one_kind(key, value, other):
    made = key.sign("card", value)
    assert holds("card", value, made, key.public)
    assert holds("card", read_json(canonical(value)), made, key.public)
    assert not holds("audit-head", value, made, key.public)
    assert holds("card", other, made, key.public) == (canonical(other) == canonical(value))


@settings(max_examples=50, deadline=None)
@given(where=st.integers(0, 63), flip=st.integers(1, 255))
def test_no_other_signature_holds(key, where, flip):
    made = key.sign("card", {"a": 1})
    raw = bytearray(base64.b64decode(made["value"]))
    raw[where] ^= flip
    assert not holds("card", {"a": 1}, {**made, "value": base64.b64encode(raw).decode()}, key.public)


def test_the_key_in_a_signature_is_not_trusted(key, tmp_path):
    other = SigningKey.of(tmp_path)
    assert not holds("card", 1, other.sign("card", 1), key.public)
    assert not holds("card", 1, {**other.sign("card", 1), "public_key": key.public}, key.public)
    assert not holds("card", 1, {**key.sign("card", 1), "more": ""}, key.public)
    assert not holds("card", 1, {**key.sign("card", 1), "value": "?"}, key.public)
    assert not holds("card", 1, {}, key.public)
    with pytest.raises(ConfigError, match="public key"):
        holds("card", 1, key.sign("card", 1), "AAAA")
    assert len(key_id(key.public)) == 16


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "NaN", '{"x": Infinity}', "{", "[" * 100_000])
def test_json_that_readers_would_see_differently_is_refused(text):
    with pytest.raises(DataError):
        read_json(text)


def test_what_is_no_json_is_not_signed(key):
    with pytest.raises(DataError):
        key.sign("card", {"x": float("nan")})
