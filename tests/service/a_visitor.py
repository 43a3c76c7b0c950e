# SPDX-License-Identifier: Apache-2.0
"""Somebody with a browser that runs no script, and what they see."""

import re
from html.parser import HTMLParser

from fastapi.testclient import TestClient

from service.a_console import add_file, rows, running, settled

EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"


class Seen(HTMLParser):
    """What is on a page."""

    def __init__(self, text):
        super().__init__()
        self.text, self.links, self.tags, self.labelled, self.fields = [], [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        self.tags.append((tag, own))
        if tag == "a":
            self.links.append(own.get("href"))
        if tag == "label":
            self.labelled.add(own["for"])
        if tag in ("input", "select", "textarea") and own.get("type") != "hidden":
            self.fields.append(own)

    def handle_data(self, data):
        self.text.append(data)

    def says(self):
        return " ".join(" ".join(self.text).split())


class Person:
    """Somebody with a browser that runs no script."""

    def __init__(self, app, key=None):
        self.http = TestClient(app, base_url="http://testserver", raise_server_exceptions=False, follow_redirects=True)
        if key is not None:
            assert self.sign_in(key).status_code == 200

    def sign_in(self, key, **more):
        return self.post("/sign-in", "/sign-in", key=key, **more)

    def get(self, path):
        return self.http.get(path)

    def see(self, path, status=200):
        answer = self.get(path)
        assert answer.status_code == status, answer.text
        return Seen(answer.text)

    def token(self, page):
        return re.search(r'name="token" value="(\w+)"', self.get(page).text)[1]

    def post(self, page, path, **fields):
        return self.http.post(path, data={"token": self.token(page), **fields})

    def upload(self, name="a.jsonl", data=None):
        return self.http.post(
            "/files",
            data={"token": self.token("/files"), "purpose": "fine-tune"},
            files={"file": (name, data or rows())},
        )


def all_pages(parts):
    """Every page that there is, with something on it that is project proj-1's."""
    file = add_file(parts, "proj-1", "support.jsonl")
    settled(parts, state="passed", job_id="ftjob-passed1")
    settled(parts, state="refused", job_id="ftjob-refused1", arm="undefended")
    settled(parts, state="waiting", job_id="ftjob-waiting1", approval=True)
    running(parts)
    jobs = [f"/jobs/ftjob-{name}" for name in ("passed1", "refused1", "waiting1", "running")]
    cards = ["/jobs/ftjob-passed1/card.html", "/jobs/ftjob-passed1/card.json"]
    return ["/", "/files", "/models", "/policy"], [*jobs, *cards, f"/files/{file.id}", f"/files/{file.id}/content"]
