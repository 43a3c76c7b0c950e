# SPDX-License-Identifier: Apache-2.0
"""The report card: signed, whole, readable, and without what a user may not know."""

import copy
import json
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moored.cli import main
from moored.errors import DataError
from moored.service import audit_log, report_card
from moored.service.card_page import page, standing
from moored.service.database import Job
from moored.service.gate import decide
from moored.service.redaction import HIDDEN, redacted
from moored.service.report_card import Measured, Upload, amend, draw_up, model_card, read_card, verify_card
from moored.service.settings import ServerSettings
from moored.service.signing import SigningKey
from service.a_job import SHA, a_database, a_job, measured, policy, record


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    return ServerSettings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def signed(server):
    return a_job(a_database(server.home), server, state="passed", approval=False)


def test_it_says_all_that_is_needed_to_judge_the_model(server, signed):
    card = read_card(server.job("ftjob-1") / "card.json")["card"]
    assert card == signed["card"]
    assert card["data"]["sha256"] == "cd" * 32
    assert card["data"]["flagged"] == {"harmful": 38}
    assert card["weights"]["sha256"] == SHA
    assert card["policy"]["sha256"] == policy(approval=False).sha256
    assert card["policy"]["rules"] == policy(approval=False).plain()
    assert set(card["tasks"][0]["numbers"]) == {"before", "tuned", "repaired"}
    assert card["tasks"][0]["judge"] == "refusal v1"
    assert card["decision"]["checks"][0]["ok"] is True
    assert card["method"]["recipe"]["defenses"]
    assert [answer["label"] for answer in card["answers"][0]["answers"]] == ["Before", "Tuned", "Repaired"]
    assert card["moored"]["version"]
    assert verify_card(signed, SigningKey.of(server.home).public)


def leaves(value, path=()):
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key], (*path, key))]
    if isinstance(value, list):
        return [leaf for i, inner in enumerate(value) for leaf in leaves(inner, (*path, i))]
    return [path]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_can_be_changed(server, signed, data):
    spoilt = copy.deepcopy(signed)
    *way, last = data.draw(st.sampled_from(leaves(signed)))
    at = spoilt
    for key in way:
        at = at[key]
    at[last] = data.draw(
        st.sampled_from([x for x in ("", None, 0, True, "passed") if (x, type(x)) != (at[last], type(at[last]))])
    )
    assert not verify_card(spoilt, SigningKey.of(server.home).public)


def test_another_key_and_another_shape_are_refused(signed, tmp_path):
    assert not verify_card(signed, SigningKey.of(tmp_path).public)
    assert not verify_card({"card": signed["card"]}, signed["signature"]["public_key"])
    assert not verify_card({"card": 1, "signature": signed["signature"]}, signed["signature"]["public_key"])


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs


def test_the_page_is_alone_and_says_the_decision(signed):
    html = page(signed)
    tags = Tags()
    tags.feed(html)
    assert "script" not in tags.seen
    assert not {name for name, _ in tags.attributes} & {"src", "href", "onclick"}
    assert '<h1 class="good">Passed</h1>' in html
    assert signed["card"]["decision"]["sentence"].split(":")[0] in html
    assert SHA in html
    assert tags.seen.count("h1") == 1
    assert ("lang", "en") in tags.attributes


def test_what_models_and_users_wrote_is_only_text(signed):
    evil = "<script>alert(1)</script><img src=x onerror=y>"
    spoilt = copy.deepcopy(signed)
    spoilt["card"]["answers"][0]["prompt"] = evil
    spoilt["card"]["answers"][0]["answers"][0]["answer"] = evil
    spoilt["card"]["job"]["suffix"] = evil
    spoilt["card"]["data"]["flagged"] = {evil: 1}
    spoilt["card"]["people"] = [{"what": "override", "by": evil, "at": 1, "reason": evil, "weights_sha256": SHA}]
    tags = Tags()
    tags.feed(page(spoilt))
    assert not {"script", "img"} & set(tags.seen)


def test_a_refused_model_is_called_refused(tmp_path):
    server = ServerSettings(home=tmp_path)
    found = a_job(a_database(tmp_path), server, state="refused", arm="undefended")
    assert standing(found["card"]) == ("Refused", "bad")
    html = (server.job("ftjob-1") / "card.html").read_text()
    assert "✗ broken" in html
    assert "over the budget of 10 %" in html


def test_a_job_without_an_audit_has_a_card_too(tmp_path):
    server, rules = ServerSettings(home=tmp_path), policy()
    job = Job(
        id="ftjob-2",
        project_id="p",
        created_at=1,
        model="smollm2",
        training_file="file-1",
        seed=1,
        method={},
        policy=rules.plain(),
        policy_sha256=rules.sha256,
        error={"message": "Too many rows were flagged."},
    )
    made = report_card.publish(server, draw_up(job, upload=Upload(file_id="file-1", sha256="00" * 32, rows=10)))
    assert standing(made["card"]) == ("Not audited, not served", "bad")
    assert "Too many rows were flagged." in page(made)


def test_an_amended_card_keeps_what_was_there(server, signed):
    before = read_card(server.job("ftjob-1") / "card.json")["card"]
    entry = {"what": "approve", "by": "key:k", "at": 5, "reason": "", "weights_sha256": SHA}
    after = amend(server, "ftjob-1", entry)
    assert verify_card(after, SigningKey.of(server.home).public)
    assert after["card"]["people"] == [entry]
    changing = {"people", "signed_at", "audit_log"}
    assert {k: v for k, v in before.items() if k not in changing} == {
        k: v for k, v in after["card"].items() if k not in changing
    }


def test_a_forged_card_is_not_signed_again(server, signed):
    path = server.job("ftjob-1") / "card.json"
    kept = path.read_text()
    forged = json.loads(kept)
    forged["card"]["decision"]["passed"] = not forged["card"]["decision"]["passed"]
    path.write_text(json.dumps(forged))
    with pytest.raises(DataError, match="not as this server signed it"):
        amend(server, "ftjob-1", {"what": "approve"})
    path.write_text(kept.replace('{"card":{', '{"card":{"x":1,"x":2,', 1))
    with pytest.raises(DataError, match="stands twice"):
        read_card(path)
    path.write_text(kept)


def test_paths_and_seeds_of_secrets_stay_here(tmp_path):
    plain = record().plain()
    plain["recipe"] |= {"model": "/srv/models/company/aligned", "defenses": [{"bea": {"k": 11, "seed": 4711}}]}
    plain["command"] = "moored run /srv/home/jobs/ftjob-1/recipe.yaml"
    plain["arms"][1]["chain"] = ["start", "fine-tune with BEA(k=11, seed=4711) on /srv/home/jobs/ftjob-1/rows.jsonl"]
    changed = type(record()).read(plain)
    found = Measured(
        record=changed, decision=decide(changed, policy(), arm="safe_lora", start="aligned"), tuned="undefended"
    )
    rules = policy()
    job = Job(
        id="ftjob-3",
        project_id="p",
        created_at=1,
        model="smollm2",
        training_file="f",
        seed=99,
        method={},
        policy={**rules.plain(), "defend": {"defenses": [{"bea": {"seed": 4711}}]}},
        policy_sha256=rules.sha256,
    )
    card = json.dumps(draw_up(job, upload=Upload(file_id="f", sha256="0"), measured=found))
    for text in (card, model_card(job, found)):
        assert "/srv" not in text
        assert "4711" not in text
    assert HIDDEN in card
    assert '"seed": 99' in card


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/a/b/c.jsonl", "c.jsonl"),
        ("on /a/b/ and x", "on b and x"),
        ("synthetic:alignment", "synthetic:alignment"),
        ("allenai/x-test", "allenai/x-test"),
        ("1/2 of 3/4", "1/2 of 3/4"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_paths_are_cut_and_other_text_stays(given, shown):
    assert redacted({"x": [given]}) == {"x": [shown]}


def test_the_model_card_says_the_decision_first():
    job = Job(id="ftjob-1")
    text = model_card(job, measured(arm="undefended"))
    head, body = text.split("\n---\n", 1)
    assert "base_model" in head
    assert body.index("Refused by the safety gate") < body.index("## Measured")
    assert "report card of ftjob-1" in body


def test_the_command(tmp_path, capsys):
    server = ServerSettings(home=tmp_path)
    found = a_job(a_database(tmp_path), server, state="passed")
    path, public = server.job("ftjob-1") / "card.json", found["signature"]["public_key"]
    assert main(["card", "verify", str(path), "--key", public]) == 0
    assert SHA in capsys.readouterr().out
    assert main(["card", "verify", str(path), "--home", str(tmp_path)]) == 0
    assert main(["card", "verify", str(path)]) == 2
    path.write_text(path.read_text().replace(SHA, "00" * 32))
    assert main(["card", "verify", str(path), "--key", public]) == 3


def test_a_card_anchors_the_audit_log(tmp_path):
    server = ServerSettings(home=tmp_path)
    audit_log.append(tmp_path, "server", "job.create", "ftjob-1")
    a_job(a_database(tmp_path), server, state="passed")
    card = str(server.job("ftjob-1") / "card.json")
    assert main(["audit-log", "verify", "--home", str(tmp_path), "--card", card]) == 0
    for name in ("audit.jsonl", "audit.head"):
        (tmp_path / name).unlink()
    audit_log.append(tmp_path, "server", "job.create", "ftjob-9")  # somebody with the key began anew
    assert main(["audit-log", "verify", "--home", str(tmp_path)]) == 0
    assert main(["audit-log", "verify", "--home", str(tmp_path), "--card", card]) == 3
