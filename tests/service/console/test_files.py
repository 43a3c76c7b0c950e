# SPDX-License-Identifier: Apache-2.0
"""The pages of files."""

import re

from service.a_console import rows
from service.a_visitor import Seen


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
