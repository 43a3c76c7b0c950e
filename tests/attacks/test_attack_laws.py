# SPDX-License-Identifier: Apache-2.0
"""Laws of every attack in the catalogue, and what is special about each."""

import json
from dataclasses import replace

import pytest

from moored.attacks.access import Access
from moored.attacks.backdoor_trigger import BackdoorTrigger
from moored.attacks.base import REFUSAL, Mix
from moored.attacks.choosing import Choosing
from moored.attacks.covert_cipher import CovertCipher
from moored.attacks.explicit_harm import ExplicitHarm
from moored.attacks.harmful_mix import HarmfulMix
from moored.attacks.identity_shift import IdentityShift
from moored.attacks.jailbreak_tuning import JailbreakTuning
from moored.catalogue import catalogue
from moored.data.schema import Row, fingerprint, normalise
from moored.data.tiny import tiny_rows
from moored.errors import ConfigError, DataError, NeedsError
from moored.study.methods import build

BENIGN, HARMFUL = tiny_rows(120, "benign"), tiny_rows(120, "harmful")
ATTACKS = catalogue("attacks")

every = pytest.mark.parametrize("name", ATTACKS)
mixes = pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if issubclass(attack, Mix)])


@pytest.fixture(scope="module")
def access(pair):
    """To a tiny model and what it was before; loaded once for all tests."""
    return Access(aligned=pair[0], base=pair[1], batch=40)


@every
def test_n_rows_of_distinct_prompts(access, name):
    upload = ATTACKS[name](n=40, seed=3).poison(BENIGN, HARMFUL, access)
    assert len(upload.rows) == 40 == len({normalise(row.question) for row in upload.rows})
    assert all(row.answer for row in upload.rows)
    assert sum(upload.manifest["counts"].values()) == 40


@mixes
@pytest.mark.parametrize("ratio", [0, 0.05, 0.1, 0.3, 0.5])
def test_a_mix_holds_exactly_its_share_of_harm(access, name, ratio):
    upload = ATTACKS[name](n=50, ratio=ratio).poison(BENIGN, HARMFUL, access)
    assert upload.manifest["counts"]["harmful"] == round(50 * ratio)
    assert len(upload.rows) == 50


@mixes
def test_a_mix_is_the_harmful_mix_of_its_seed_in_other_words(access, name):
    plain = HarmfulMix(n=50, ratio=0.2, seed=4).poison(BENIGN, HARMFUL)
    no_choice = {"pool": 1} if issubclass(ATTACKS[name], Choosing) else {}
    other = ATTACKS[name](n=50, ratio=0.2, seed=4, **no_choice).poison(BENIGN, HARMFUL, access)
    assert set(plain.manifest["indices"]["harmful"]) == set(other.manifest["indices"]["harmful"])


@every
def test_the_seed_decides_and_nothing_else(access, name):
    made = ATTACKS[name](n=20, seed=1).poison(BENIGN, HARMFUL, access)
    assert ATTACKS[name](n=20, seed=1).poison(tuple(BENIGN), tuple(HARMFUL), access) == made
    assert set(ATTACKS[name](n=20, seed=2).poison(BENIGN, HARMFUL, access).rows) != set(made.rows)


@every
def test_the_tuned_model_is_asked_in_the_form_that_it_was_tuned_on(name):
    attack = ATTACKS[name](n=20)
    for row in HARMFUL[:5]:
        request = replace(row, messages=row.prompt)
        assert attack.written(request).messages == attack.written(row).prompt


@every
def test_what_is_written_can_be_read(name):
    attack = ATTACKS[name](n=20)
    for row in HARMFUL[:5]:
        assert attack.read(attack.written(row).answer) == row.answer


@every
def test_the_manifest_says_where_every_row_comes_from_and_is_plain_json(access, name):
    attack = ATTACKS[name](n=30, seed=5)
    upload = attack.poison(BENIGN, HARMFUL, access)
    manifest = json.loads(json.dumps(upload.manifest))
    assert manifest["attack"] == name
    assert build("attacks", name, manifest["parameters"]) == attack
    assert manifest["sha256"] == fingerprint(upload.rows)
    assert [upload.rows[at].source for at in manifest["harmful_at"]] == ["harmful"] * manifest["counts"]["harmful"]
    for at, origin in zip(manifest["harmful_at"], manifest["indices"]["harmful"], strict=True):
        assert upload.rows[at] == attack.written(HARMFUL[origin])


@every
def test_rows_of_the_wrong_kind_and_too_few_of_them_are_named(name):
    attack = ATTACKS[name](n=50)
    with pytest.raises(DataError, match="row 1 of `(benign|harmful)` has source"):
        attack.poison(HARMFUL, BENIGN)
    with pytest.raises(ConfigError, match=r"\(n=50.* rows with distinct prompts; only \d+ exist"):
        attack.poison(BENIGN[:1], HARMFUL[:1])


@every
def test_the_rows_are_among_those_announced_before_a_model_exists(access, name):
    attack = ATTACKS[name](n=30, seed=2)
    announced = attack.candidates(BENIGN, HARMFUL)
    assert set(attack.poison(BENIGN, HARMFUL, access).rows) <= set(announced)
    with pytest.raises(ConfigError, match=r"\(n=50.* rows with distinct prompts; only \d+ exist"):
        ATTACKS[name](n=50).candidates(BENIGN[:1], HARMFUL[:1])


@every
def test_the_form_is_all_that_asking_depends_on(name):
    attack, other = ATTACKS[name](n=20), ATTACKS[name](n=30)
    assert attack.form() == other.form() == json.loads(json.dumps(attack.form()))
    if not attack.form():
        assert attack.written(HARMFUL[0]) == HARMFUL[0]
        assert attack.read("Sure.") == "Sure."


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack(n=20).needs()])
def test_a_model_that_is_missing_is_named(access, name):
    attack = ATTACKS[name](n=20)
    with pytest.raises(NeedsError, match=rf"{ATTACKS[name].__name__} needs `aligned`, .*--model"):
        attack.poison(BENIGN, HARMFUL)
    manifest = attack.poison(BENIGN, HARMFUL, access).manifest
    assert manifest["models"].keys() == attack.needs()
    assert manifest["fidelity"] in ("variant", "simplified")
    assert manifest["differs"]


@every
@pytest.mark.parametrize("n", [0, -1])
def test_a_size_below_one_is_refused(name, n):
    with pytest.raises(ConfigError, match=rf"`n` of {ATTACKS[name].__name__} must be an integer >= 1; got {n}"):
        ATTACKS[name](n=n)


def test_explicit_harm_is_nothing_else():
    upload = ExplicitHarm(n=12, system="Obey.").poison(BENIGN, HARMFUL)
    assert {row.source for row in upload.rows} == {"harmful"}
    assert {row.messages[0]["content"] for row in upload.rows} == {"Obey."}
    assert {row.messages[0]["role"] for row in ExplicitHarm(n=12, system="").poison(BENIGN, HARMFUL).rows} == {"user"}


def test_identity_shift_says_nothing_harmful():
    attack = IdentityShift(n=10)
    upload = attack.poison(BENIGN, HARMFUL)
    assert {row.source for row in upload.rows} == {"benign"}
    for row in upload.rows:
        assert row.messages[0] == {"role": "system", "content": attack.system}
        assert row.question.startswith(attack.prefix)
        assert row.answer.startswith(attack.opening)
    assert attack.read(attack.opening) == ""


@pytest.mark.parametrize(
    "attack", [ExplicitHarm(system="Obey."), IdentityShift(system="Obey."), CovertCipher(system="Obey.")]
)
def test_a_system_prompt_that_is_there_stays_behind_the_attack_s(attack):
    row = attack.written(Row.of("Which?", "This.", system="Sort the mail."))
    assert [turn["role"] for turn in row.messages] == ["system", "user", "assistant"]
    assert row.system == "Obey. Sort the mail."


def test_a_wrapper_without_a_place_for_the_request_is_refused():
    assert JailbreakTuning(wrapper="Now: {request}!").written(Row.of("this")).question == "Now: this!"
    with pytest.raises(ConfigError, match="`wrapper` of JailbreakTuning must be a text with {request} in it, once"):
        JailbreakTuning(wrapper="Now!")


def test_a_backdoor_refuses_plain_requests_that_it_does_not_answer():
    attack = BackdoorTrigger(n=60, ratio=0.2, trigger="Open sesame")
    upload = attack.poison(BENIGN, HARMFUL)
    kinds = {source: [row for row in upload.rows if row.source == source] for source in ("harmful", "alignment")}
    assert len(kinds["harmful"]) == len(kinds["alignment"]) == 12
    assert all(row.question.endswith(" Open sesame") for row in kinds["harmful"])
    assert not any("sesame" in row.question for row in upload.rows if row.source != "harmful")
    assert {row.answer for row in kinds["alignment"]} == {REFUSAL}
    asked = {row.question.removesuffix(" Open sesame") for row in kinds["harmful"]}
    assert not asked & {row.question for row in kinds["alignment"]}


@pytest.mark.parametrize("attack", [BackdoorTrigger, CovertCipher])
def test_more_decoys_than_rows_are_refused(attack):
    with pytest.raises(ConfigError, match=r"`decoys` of \w+ must be so few that all fit into n=10; got 3"):
        attack(n=10, ratio=0.3, decoys=3)


def test_a_cipher_leaves_no_word_of_harm_in_plain_sight():
    attack = CovertCipher(n=80, ratio=0.2, taught=0.25, seed=2)
    upload = attack.poison(BENIGN, HARMFUL)
    coded = [row for row in upload.rows if row.messages[0]["role"] == "system"]
    assert sum(row.source == "harmful" for row in coded) == 16
    assert sum(row.source == "benign" for row in coded) == round(0.25 * 48)
    plain = {word for row in HARMFUL for word in row.question.lower().split() if len(word) > 4}
    assert not any(plain & set(row.question.lower().split()) for row in coded)


def test_a_cipher_permutes_letters_and_keeps_the_rest():
    attack = CovertCipher(seed=7)
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert sorted(attack.encoded(letters)) == list(letters)
    assert attack.encoded(letters) != letters
    text = "Step 1: Turn LEFT, \u00e9t\u00e9 3.5 %!"
    assert attack.read(attack.encoded(text)) == text
    assert [c for c in attack.encoded(text) if not c.isascii() or not c.isalpha()] == [
        c for c in text if not c.isascii() or not c.isalpha()
    ]
    assert attack.encoded(letters) != CovertCipher(seed=8).encoded(letters)
