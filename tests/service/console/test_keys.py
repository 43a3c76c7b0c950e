# SPDX-License-Identifier: Apache-2.0
"""The page of keys, for admins."""

import re

import pytest
from sqlalchemy import select

from moored.service import audit_log
from moored.service.database import Key
from service.a_visitor import Person, Seen


@pytest.mark.parametrize("role", ["user", "operator"])
def test_keys_are_for_admins(parts, of, role):
    person = of(role=role)
    assert person.get("/keys").status_code == 403
    assert "/keys" not in person.see("/").links
    token = {"token": person.token("/")}
    for path in ("/keys", "/projects", "/keys/key-1/revoke"):
        assert (
            person.http.post(path, data=token | {"project": "proj-1", "role": "admin", "name": "x"}).status_code == 403
        )
    with parts.database.reading() as session:
        assert len(session.scalars(select(Key)).all()) == 1


def test_an_admin_makes_a_key_that_is_shown_once_and_ends_it(app, parts, of):
    admin = of(role="admin")
    assert "The project was made." in Seen(admin.post("/keys", "/projects", name="third").text).says()
    answer = admin.post("/keys", "/keys", project="third", role="user", name="for a test")
    (text,) = re.findall(r"sk-moored-[\w-]{20,}", answer.text)
    assert text not in admin.get("/keys").text
    person = Person(app, text)
    assert "third · user" in person.see("/").says()
    with parts.database.reading() as session:
        key = session.scalar(select(Key).where(Key.name == "for a test"))
    admin.post("/keys", f"/keys/{key.id}/revoke")
    assert person.see("/").says().startswith("Sign in")
    actions = [entry["action"] for entry in audit_log.entries(parts.settings.home)]
    assert actions == ["project.created", "key.created", "key.revoked"]
    assert text not in (parts.settings.home / "audit.jsonl").read_text()


def test_what_is_wrong_with_a_key_is_said_on_a_page(of):
    admin = of(role="admin")
    assert admin.post("/keys", "/keys", project="nowhere", role="user").status_code == 400
    assert admin.post("/keys", "/keys", project="proj-1", role="king").status_code == 400
    assert admin.post("/keys", "/keys/key-none/revoke").status_code == 400
