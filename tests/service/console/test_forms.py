# SPDX-License-Identifier: Apache-2.0
"""Forms of the console: only its own pages' are taken."""

from service.a_visitor import Person, all_pages


def forms(page):
    return [own for tag, own in page.tags if tag == "form" and own["method"] == "post"]


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


def test_a_form_after_the_session_has_ended_leads_to_signing_in(parts, of):
    person = of()
    token = person.token("/")
    person.http.cookies.clear()
    answer = person.http.post("/jobs", data={"token": token}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")


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
