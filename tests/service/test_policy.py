# SPDX-License-Identifier: Apache-2.0
"""The operator's policy: what it says wrong is named before anything starts."""

import pytest

from moored.errors import ConfigError
from moored.service.policy import Policy, default_policy


def _policy(tmp_path, old, new):
    text = default_policy()
    assert old in text
    file = tmp_path / "policy.toml"
    file.write_text(text.replace(old, new), encoding="utf-8")
    return file


def test_the_default_is_valid_and_its_version_ignores_comments(tmp_path):
    same = Policy.load(_policy(tmp_path, "# report | flag | drop | block", "# another comment"))
    other = Policy.load(_policy(tmp_path, "harmful_score = 10.0", "harmful_score = 11.0"))
    whole = Policy.load(_policy(tmp_path, "name", "name"))
    assert same.sha256 == whole.sha256 != other.sha256
    assert Policy.model_validate(whole.plain()).sha256 == whole.sha256  # a job keeps it as plain JSON


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("harmful_score =", "harmfulscore =", "unknown key of `gate` 'harmfulscore'; did you mean 'harmful_score'"),
        ("lisa = { rho = 1.0 }", "liza = {}", "unknown defense 'liza'; did you mean 'lisa'"),
        ("rho = 1.0", "rho = -1.0", "`rho` of Lisa must be"),
        ("safe_lora = { fraction", "safe_lora = { fractoin", "fractoin"),
        ("utility = { n", "utilty = { n", "utilty"),
        ('harmful = "flag"', 'harmful = "eat"', "`screen.harmful`"),
        ("harmful_score = 10.0", "harmful_score = 101", "`gate.harmful_score`"),
        ('name = "default"', 'name = "default', "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        Policy.load(_policy(tmp_path, old, new))


def test_a_missing_one_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="moored serve"):
        Policy.load(tmp_path / "policy.toml")
