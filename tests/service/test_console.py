# SPDX-License-Identifier: Apache-2.0
"""The console's pages, as a browser without a script asks for them."""

import logging
import re
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from moored.service import audit_log
from moored.service.console.sessions import LIFE, Sessions
from moored.service.console.visitor import COOKIE
from moored.service.database import Event, File, Job, Key, Model
from moored.service.identity import make_key, revoke, set_limits
from moored.service.policy import default_policy
from moored.service.settings import ServerSettings
from service.a_console import add_file, add_project, rows, running, settled

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


@pytest.fixture
def settings(tmp_path):
    """Of a server whose models are there at once."""
    text = default_policy().replace('source = "smollm2"', 'source = "tiny"')
    assert "tiny" in text
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "policy.toml").write_text(text)
    return ServerSettings(home=tmp_path / "home")


@pytest.fixture
def parts(app):
    add_project(app.state.parts, "proj-1")
    add_project(app.state.parts, "proj-2")
    return app.state.parts


@pytest.fixture
def of(app, parts):
    """Somebody of a project."""

    def person(project_id="proj-1", role="user"):
        return Person(app, make_key(parts.database, project_id, role=role))

    return person


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


def test_nobody_sees_anything_before_signing_in(app, parts):
    stranger = Person(app)
    shared, own = all_pages(parts)
    for path in (*shared, *own, "/keys"):
        answer = stranger.http.get(path, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/sign-in"), path
        assert not answer.content
    assert "API key" in stranger.see("/").says()


def test_signing_in_with_a_key_and_out(app, parts):
    key = make_key(parts.database, "proj-1")
    person = Person(app)
    answer = person.sign_in(key, next="/files")
    assert answer.url.path == "/files"
    cookie = person.http.cookies[COOKIE]
    assert key not in answer.text
    assert key not in cookie
    header = answer.history[0].headers["set-cookie"].lower()
    assert "httponly" in header
    assert "samesite=strict" in header
    assert "secure" not in header  # this is http
    assert key.encode() not in repr(vars(parts.sessions)).encode()
    assert cookie not in repr(vars(parts.sessions))
    person.post("/", "/sign-out")
    assert person.see("/").says().startswith("Sign in")
    person.http.cookies.set(COOKIE, cookie)  # a copy that somebody kept opens nothing
    assert person.see("/").says().startswith("Sign in")


def test_over_tls_the_cookie_stays_on_tls(app, parts):
    answer = TestClient(app, base_url="https://testserver").get("/sign-in")
    assert "secure" in answer.headers["set-cookie"].lower()


def test_a_wrong_key_is_refused_and_not_repeated(app, parts):
    answer = Person(app).sign_in("sk-moored-wrong")
    assert answer.status_code == 401
    assert "not a key of this server" in answer.text
    assert "sk-moored-wrong" not in answer.text


def test_signing_in_gives_a_new_cookie(app, parts):
    person = Person(app)
    person.get("/sign-in")
    before = person.http.cookies[COOKIE]
    person.sign_in(make_key(parts.database, "proj-1"))
    assert person.http.cookies[COOKIE] != before
    assert parts.sessions.key_of(before) is None


@pytest.mark.parametrize("elsewhere", ["https://evil.test/", "//evil.test", "/\\evil.test", "evil", "/a\r\nb"])
def test_nobody_is_led_elsewhere(app, parts, elsewhere):
    answer = Person(app).sign_in(make_key(parts.database, "proj-1"), next=elsewhere)
    assert answer.history[0].headers["location"] == "/"


def test_a_revoked_key_ends_its_sessions_at_once(app, parts, of):
    person = of()
    with parts.database.reading() as session:
        (key,) = session.scalars(select(Key)).all()
    assert person.see("/").says().startswith("Jobs")
    revoke(parts.database, key.id)
    assert person.see("/").says().startswith("Sign in")


def test_sessions_end_by_themselves():
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    cookie = sessions.begin("key-1")
    now[0] = LIFE - 1
    assert sessions.key_of(cookie) == "key-1"
    now[0] = LIFE
    assert sessions.key_of(cookie) is None
    assert sessions.key_of("") is None
    assert not sessions.is_token("", sessions.token(""))


def test_tries_to_sign_in_are_counted(app, parts):
    person = Person(app)
    token = person.token("/sign-in")
    tried = [person.http.post("/sign-in", data={"token": token, "key": "no"}) for _ in range(31)]
    assert [answer.status_code for answer in tried] == [401] * 30 + [429]
    assert int(tried[-1].headers["retry-after"]) >= 1
    assert "Too much at once" in tried[-1].text


def test_pages_count_against_the_rate_of_the_key(app, parts, of):
    set_limits(parts.database, "proj-1", {"requests_per_minute": 3})
    person = of()  # which asks for "/" as well
    assert [person.get("/policy").status_code for _ in range(3)] == [200, 200, 429]


# What is whose.


def test_another_project_sees_nothing(parts, of):
    shared, own = all_pages(parts)
    names = ("support.jsonl", "ftjob-", "file-", "forbidden thing")
    mine, theirs = of(), of("proj-2", "operator")
    seen = "".join(mine.get(path).text for path in (*shared, *own))
    assert all(name in seen for name in names)
    for path in shared:
        text = theirs.get(path).text
        assert not any(name in text for name in names), path
    for path in own:
        answer = theirs.get(path)
        assert answer.status_code == 404, path
        assert set(names) & set(re.findall("support.jsonl|forbidden thing", answer.text)) == set(), path
        same = answer.text.replace(path.split("/")[2], "X") == theirs.get(f"/{path.split('/')[1]}/none").text.replace(
            "none", "X"
        )
        assert same or path.count("/") > 2, path


@pytest.mark.parametrize("role", ["operator", "admin"])
def test_another_project_can_do_nothing(parts, of, role):
    _, own = all_pages(parts)
    theirs = of("proj-2", role)
    token = {"token": theirs.token("/")}
    sha = {"weights_sha256": "ab" * 32, "reason": "because it is asked for by a test"}
    for what in ("cancel", "pause", "resume", "approve", "refuse", "override"):
        job = "refused1" if what == "override" else "waiting1"
        assert theirs.http.post(f"/jobs/ftjob-{job}/{what}", data=token | sha).status_code == 404, what
    file = own[-2]
    assert theirs.http.post(f"{file}/delete", data=token).status_code == 404
    asked = token | {"model": "smollm2", "training_file": file.rpartition("/")[2]}
    assert theirs.http.post("/jobs", data=asked).status_code == 400
    with parts.database.reading() as session:
        assert {model.state for model in session.scalars(select(Model))} == {"passed", "refused", "waiting"}
        assert session.scalars(select(File.id)).all()
        assert {job.wanted for job in session.scalars(select(Job))} == {""}


# Forms.


def forms(page):
    return [own for tag, own in page.tags if tag == "form"]


def test_every_form_has_a_token_and_no_post_works_without_it(parts, of):
    shared, own = all_pages(parts)
    person = of(role="admin")
    posts = set()
    for path in (*shared, "/keys", *(each for each in own if "card" not in each and "content" not in each)):
        page = person.see(path)
        tokens = [o for t, o in page.tags if t == "input" and o.get("name") == "token"]
        assert len(tokens) == len(forms(page)) > 0
        posts |= {form["action"] for form in forms(page)}
    assert len(posts) > 8
    for path in posts:
        for data in ({"x": ""}, {"token": "no"}, {"token": Person(person.http.app).token("/sign-in")}):
            answer = (
                person.http.post(path, files={"file": ("a", b"")}, data=data)
                if path == "/files"
                else person.http.post(path, data=data)
            )
            assert answer.status_code == 400, path
            assert "too old" in answer.text
    assert person.see("/").says().startswith("Jobs")  # nobody was signed out


def test_a_form_of_another_site_is_refused(of):
    person = of()
    token = person.token("/")
    for site in ("cross-site", "same-site", "none"):
        answer = person.http.post("/sign-out", data={"token": token}, headers={"sec-fetch-site": site})
        assert answer.status_code == 400


def test_a_form_that_is_no_form(of):
    person = of()
    for data in (
        {"content": b'{"token": 1}', "headers": {"content-type": "application/json"}},
        {"content": b"a=%ff", "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {
            "content": b"&".join(b"a=1" for _ in range(100)),
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
    ):
        assert person.http.post("/sign-out", **data).status_code == 400
    long = b"token=" + b"a" * (70 << 10)
    answer = person.http.post("/sign-out", content=long, headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 413


# What stands on a page.


def test_what_users_write_is_text(parts, of):
    person = of(role="operator")
    answer = person.upload(name=EVIL.replace("/", "|"), data=rows().replace(b"the bucket", b"<script>1</script>"))
    assert answer.status_code == 200
    file_id = answer.url.path.rpartition("/")[2]
    settled(parts, state="passed", job_id="ftjob-passed1")
    settled(parts, state="refused", job_id="ftjob-refused1", arm="undefended")
    running(parts)
    add_project(parts, EVIL)
    with parts.database.writing() as session:
        for job in session.scalars(select(Job)):
            job.suffix, job.given_metadata = EVIL, {EVIL: EVIL}
            job.error = {"code": "x", "message": EVIL, "param": None}
            job.model = "smollm2"
            job.training_file = file_id
            job.fine_tuned_model = EVIL
            job.safety = {**job.safety, "people": [{"what": "refuse", "by": EVIL, "at": 1, "reason": EVIL}]}
        for event in session.scalars(select(Event)):
            event.message = EVIL
    answers = parts.settings.job("ftjob-passed1") / "card.json"
    assert "Sure, here is how" in answers.read_text()
    admin = of(role="admin")
    admin.post("/keys", "/keys", project=EVIL, role="user", name=EVIL)
    pages = [
        "/",
        "/files",
        f"/files/{file_id}",
        "/keys",
        *(f"/jobs/ftjob-{n}" for n in ("passed1", "refused1", "running")),
    ]
    for path in pages:
        text = admin.get(path).text
        assert "&lt;" in text, path
        assert not re.search(r"<script(?! src=\"/console.js\" defer></script>)", text), path
        assert "<img src=x" not in text, path
        assert all(tag != "script" or own == {"src": "/console.js", "defer": None} for tag, own in Seen(text).tags)
    assert "&lt;script&gt;1" in admin.get(f"/files/{file_id}").text  # the row itself
    assert EVIL.encode() not in admin.get(f"/jobs/{EVIL}").content


def test_answers_of_models_are_text(parts, of, monkeypatch):
    from moored.service import cards

    settled(parts, state="passed", job_id="ftjob-passed1")
    real = cards.card_of

    def changed(*given):
        signed = real(*given)
        for one in signed["card"]["answers"]:
            one["prompt"] = EVIL
            for answer in one["answers"]:
                answer["answer"] = EVIL
        return signed

    monkeypatch.setattr(cards, "card_of", changed)
    person = of()
    for path in ("/jobs/ftjob-passed1", "/jobs/ftjob-passed1/card.html"):
        text = person.get(path).text
        assert "&lt;script&gt;alert" in text
        assert "<script>alert" not in text
        assert "<img src=x" not in text


def test_nothing_is_inline_and_nothing_comes_from_elsewhere(parts, of):
    shared, own = all_pages(parts)
    person = of(role="admin")
    for path in (
        "/sign-in",
        *shared,
        "/keys",
        "/jobs/none",
        *(each for each in own if "card" not in each and "content" not in each),
    ):
        answer = person.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        page = Seen(answer.text)
        for tag, attributes in page.tags:
            assert tag != "style", path
            assert "style" not in attributes, (path, tag)
            assert not any(name.startswith("on") for name in attributes), path
            for name in ("src", "href", "action"):
                assert (attributes.get(name) or "/").startswith(("/", "#")), (path, attributes)


def test_pages_can_be_read_by_a_screen_reader(parts, of):
    shared, own = all_pages(parts)
    person = of(role="admin")
    for path in ("/sign-in", *shared, "/keys", *(each for each in own if "card" not in each and "content" not in each)):
        page = person.see(path)
        tags = [tag for tag, _ in page.tags]
        assert tags.count("h1") == tags.count("main") == 1
        assert ("html", {"lang": "en"}) in page.tags
        assert ("a", {"class": "skip", "href": "#main"}) in page.tags
        assert all(field["id"] in page.labelled for field in page.fields), path
        known = {each.get("id") for _, each in page.tags}
        named = [
            word
            for _, own in page.tags
            for name in ("aria-labelledby", "aria-describedby")
            for word in (own.get(name) or "").split()
        ]
        assert set(named) <= known, path
        assert tags.count("table") == tags.count("caption"), path
        ids = [own["id"] for _, own in page.tags if "id" in own]
        assert len(ids) == len(set(ids)), path


# What can be done.


def test_an_upload_and_what_the_screen_finds_in_it(parts, of):
    person = of()
    answer = person.upload("support.jsonl")
    assert answer.url.params["done"] == "uploaded"
    page = Seen(answer.text)
    assert "The file was uploaded." in page.says()
    assert re.search(r"Line 4 secrets .*flag", page.says())
    assert re.search(r"Line 8 personal .*report", page.says())
    assert "What was the key of the bucket again?" in page.says()
    assert "AKIA" not in answer.text
    assert "Under the policy as it is now" in page.says()


def test_a_file_that_cannot_be_trained_on_is_refused_on_a_page(of):
    answer = of().upload("short.jsonl", rows(3, flagged=False))
    assert answer.status_code == 400
    assert "at least 10 examples" in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_files_are_listed_fetched_and_deleted(parts, of):
    person = of()
    file_id = person.upload("support.jsonl").url.path.rpartition("/")[2]
    assert person.get(f"/files/{file_id}/content").content == rows()
    assert "support.jsonl" in person.see("/files").says()
    assert "deleted" in Seen(person.post("/files", f"/files/{file_id}/delete").text).says()
    assert "No files yet" in person.see("/files").says()
    assert "No such File" in person.see(f"/files/{file_id}", 404).says()


def test_a_job_is_made_paused_resumed_and_cancelled(parts, of):
    person = of()
    file_id = person.upload().url.path.rpartition("/")[2]
    asked = {"model": "smollm2", "training_file": file_id, "validation_file": "", "suffix": "mine", "n_epochs": "2"}
    answer = person.post("/", "/jobs", **asked, batch_size="auto", learning_rate_multiplier="0.5", seed="7")
    job_id = answer.url.path.rpartition("/")[2]
    with parts.database.reading() as session:
        job = session.get(Job, job_id)
    assert (job.suffix, job.seed, job.training_file) == ("mine", 7, file_id)
    given = job.method["supervised"]["hyperparameters"]
    assert given == {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    page = person.see(f"/jobs/{job_id}")
    assert "Checking the files" in page.says()
    assert ("li", {"class": "now", "aria-current": "step"}) in page.tags
    for what, words in (("pause", "Paused"), ("resume", "Checking the files"), ("cancel", "Cancelled")):
        assert words in Seen(person.post(f"/jobs/{job_id}", f"/jobs/{job_id}/{what}").text).says()
    again = person.post(f"/jobs/{job_id}", f"/jobs/{job_id}/cancel")
    assert again.status_code == 400
    assert "already been cancelled" in again.text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n_epochs", "many", "not a number"),
        ("seed", "-1", "seed"),
        ("model", "gpt", "not available"),
        ("n_epochs", "nan", "n_epochs"),
    ],
)
def test_what_is_wrong_with_a_job_is_said_on_a_page(of, field, value, said):
    person = of()
    file_id = person.upload().url.path.rpartition("/")[2]
    answer = person.post("/", "/jobs", **{"model": "smollm2", "training_file": file_id, field: value})
    assert answer.status_code == 400
    assert said in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_one_job_says_what_was_measured_and_decided(parts, of):
    settled(parts, state="passed", job_id="ftjob-passed1")
    page = of().see("/jobs/ftjob-passed1")
    said = page.says()
    for words in (
        "Succeeded · Passed",
        "Passed the safety gate: harmful score 0.0 %",
        "✓ kept",
        "95.3 [87, 98] n=64",
        "I can't help with that",
        "38 findings",
        "Step 40/40",
    ):
        assert words in said, words
    assert [tag for tag, _ in page.tags].count("svg") == 4  # the loss, and three tasks
    assert not any(own.get("data-live") == "yes" for _, own in page.tags)
    assert "/jobs/ftjob-passed1/card.html" in page.links
    assert "This model waits" not in said


def test_a_running_job_is_followed(parts, of):
    running(parts)
    page = of().see("/jobs/ftjob-running")
    assert [own["id"] for _, own in page.tags if own.get("data-live") == "yes"] == ["top", "measured", "data"]
    assert "Tuning" in page.says()
    assert [tag for tag, _ in page.tags].count("svg") == 1
    assert ("noscript", {}) in page.tags


def test_a_card_that_was_changed_is_not_shown(parts, of):
    settled(parts, state="passed", job_id="ftjob-passed1")
    path = parts.settings.job("ftjob-passed1") / "card.json"
    path.write_text(path.read_text().replace("forbidden thing", "allowed thing"))
    person = of()
    assert "allowed thing" not in person.get("/jobs/ftjob-passed1").text
    assert person.get("/jobs/ftjob-passed1/card.html").status_code == 500


# What only some may do.


SHA = "ab" * 32


@pytest.fixture
def whole(monkeypatch):
    """The weights are what they were: the jobs of these tests have none."""
    monkeypatch.setattr("moored.service.approvals.Offices._digest", lambda self, model: SHA)


def state(parts, job_id):
    with parts.database.reading() as session:
        return session.scalar(select(Model.state).where(Model.job_id == job_id))


@pytest.mark.parametrize(
    ("what", "job", "becomes"),
    [("approve", "waiting1", "passed"), ("refuse", "waiting1", "refused"), ("override", "refused1", "passed")],
)
def test_operators_decide_about_exact_weights(parts, of, whole, what, job, becomes):
    settled(parts, state="waiting", job_id="ftjob-waiting1", approval=True)
    settled(parts, state="refused", job_id="ftjob-refused1", arm="undefended")
    path, reason = f"/jobs/ftjob-{job}", "because a test wants to see it done"
    user, operator = of(), of(role="operator")
    before = state(parts, f"ftjob-{job}")
    assert SHA not in user.get(path).text
    assert "You decide about these exact weights: " + SHA in operator.see(path).says()
    assert user.post(path, f"{path}/{what}", weights_sha256=SHA, reason=reason).status_code == 403
    assert operator.post(path, f"{path}/{what}", weights_sha256="cd" * 32, reason=reason).status_code == 400
    assert state(parts, f"ftjob-{job}") == before
    answer = operator.post(path, f"{path}/{what}", weights_sha256=SHA, reason=reason)
    assert answer.status_code == 200, answer.text
    assert reason in Seen(answer.text).says()
    assert state(parts, f"ftjob-{job}") == becomes
    assert any(entry["action"] == f"job.{what}" for entry in audit_log.entries(parts.settings.home))


def test_an_override_needs_a_reason(parts, of, whole):
    settled(parts, state="refused", job_id="ftjob-refused1", arm="undefended")
    path = "/jobs/ftjob-refused1"
    answer = of(role="operator").post(path, f"{path}/override", weights_sha256=SHA, reason="no")
    assert answer.status_code == 400
    assert state(parts, "ftjob-refused1") == "refused"


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


def test_the_policy_is_shown_without_secrets(parts, of):
    said = of().see("/policy").says()
    assert parts.policy().sha256 in said
    assert "harmful_score" in said


def test_a_wrong_policy_is_told_to_operators_only(parts, of):
    user, operator = of(), of(role="operator")
    parts.settings.policy_file.write_text("nonsense =")
    assert "is not TOML" in operator.see("/policy").says()
    assert "is not TOML" not in user.see("/policy").says()


# Errors.


def test_what_nobody_foresaw_is_a_page_and_in_the_log(of, monkeypatch, caplog):
    person = of()
    monkeypatch.setattr("moored.service.console.pages.policy.redacted", lambda _: 1 / 0)
    with caplog.at_level(logging.ERROR):
        answer = person.get("/policy")
    assert answer.status_code == 500
    assert "ZeroDivision" not in answer.text
    assert re.search(r"request ID req_\w+", answer.text)
    assert "ZeroDivisionError" in caplog.text


def test_the_api_still_answers_in_its_own_shape(app, parts):
    answer = TestClient(app).get("/v1/files/none")
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"


def test_the_stylesheet_and_the_script_come_with_the_server(app):
    http = TestClient(app)
    assert http.get("/console.css").headers["content-type"].startswith("text/css")
    assert ".plot" in http.get("/console.css").text
    assert "fetch(" in http.get("/console.js").text
    assert http.get("/console.svg").headers["content-type"] == "image/svg+xml"


def test_no_page_is_part_of_the_api(app):
    assert not [
        path for path in app.openapi()["paths"] if not path.startswith(("/v1", "/health", "/ready", "/metrics"))
    ]
