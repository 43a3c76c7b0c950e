# SPDX-License-Identifier: Apache-2.0
"""The page of the policy."""


def test_the_policy_is_shown_without_secrets(parts, of):
    said = of().see("/policy").says()
    assert parts.policy().sha256 in said
    assert "harmful_score" in said


def test_a_wrong_policy_is_told_to_operators_only(parts, of):
    user, operator = of(), of(role="operator")
    parts.settings.policy_file.write_text("nonsense =")
    assert "is not TOML" in operator.see("/policy").says()
    assert "is not TOML" not in user.see("/policy").says()
