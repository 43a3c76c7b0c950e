# SPDX-License-Identifier: Apache-2.0
import re
from html.parser import HTMLParser

import pytest

from moored.errors import DataError
from moored.report.demo import demo_record, share
from moored.report.html import CAVEATS, comparisons, duration, render, size, write_report
from moored.report.record import Record
from moored.report.table import cells

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting and keeps tags, attributes and text."""

    def __init__(self, source):
        super().__init__()
        self.stack, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not self.stack or self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def bare():
    return {
        "name": "bare",
        "tasks": [{"name": "hs", "title": "ASR", "role": "safety", "better": "lower"}],
        "arms": [{"name": "a", "title": "Only arm"}],
    }


@pytest.mark.parametrize(
    "record", [demo_record(), demo_record(ratios=(0.0, 0.1)), bare()], ids=["demo", "sweep", "bare"]
)
def test_one_well_formed_file_that_asks_nobody_for_anything(record):
    source = render(record)
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for _, name, value in page.attributes:
        assert name not in ("src", "href", "action", "background", "poster", "srcset"), value
        assert not name.startswith("on")
    assert set(re.findall(r"https?:[^\"'\s)<]+", source)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in source
    assert "url(" not in source
    assert "default-src 'none'" in source


def test_the_numbers_of_the_page_are_those_of_the_record():
    record = demo_record()
    text = Page(render(record)).text
    for arm in record.arms:
        assert arm.title in text
        row = " ".join(cells(record, arm)[1:])
        assert row in text.replace("  ", " "), arm.title


def test_every_part_is_there():
    text = Page(render(demo_record())).text
    for part in (
        "Made-up numbers",
        "6 of 7 expectations met, 1 missed",
        "✗ missed Undefended + Safe LoRA",
        "The same prompts, before and after",
        "What was done",
        "Proof that the defences acted",
        "120 of 210",
        "Layer by layer",
        "While training",
        "What this does not promise",
        "Run it again",
        "moored demo --seed 0 --ratio 0.1",
        "ratio: - 0.1",
        "torch 2.13.0",
        "8.0 GiB memory",
        "8 min 32 s",
    ):
        assert part in text, part
    for caveat in CAVEATS:
        assert caveat in text


def test_sets_say_what_they_share_and_public_ones_their_licence():
    record = bare()
    record["prompts"] = [
        {"name": "align.data", "prompts": 7, "shared": {"attack": 2}},
        {"name": "task hs", "prompts": 3},
    ]
    public = {"name": "sst2", "title": "SST-2", "part": "train", "version": "1.0", "licence": "some terms"}
    record["data"] = [{"name": "rows.jsonl"}, public]
    text = Page(render(record)).text
    assert "Set Prompts Of these also in align.data 7 attack (2) task hs 3 –" in text
    assert "Public set Part Version Licence SST-2 train 1.0 some terms" in text
    assert "rows.jsonl" not in text
    assert "Public set" not in Page(render({**record, "data": []})).text


def test_hostile_text_is_inert():
    evil = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7777*7 }}"
    data = demo_record().plain()
    data.update(name=evil, title=evil, model=evil, command=evil, commit=evil, warnings=[evil], recipe={evil: evil})
    data["versions"] = {evil: evil}
    data["inputs"] = {evil: evil}
    for task in data["tasks"]:
        task.update(title=evil, judge=evil, data=evil)
    for arm in data["arms"]:
        arm.update(title=evil + arm["name"], chain=[evil], note=evil, fired={evil: {"count": 1, "unit": evil}})
        for example in arm["examples"]:
            example.update(prompt=evil, answer=evil)
        for layer in arm["layers"]:
            layer["module"] += evil
    source = render(data)
    page = Page(source)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "<script" not in source
    assert "54439" not in source
    assert evil in page.text


def test_a_record_without_optional_parts_renders():
    text = Page(render(bare())).text
    assert "Only arm" in text
    assert "Proof" not in text
    assert "Layer by layer" not in text
    assert "While training" not in text
    assert "What this does not promise" in text


@pytest.mark.parametrize(
    "part", ["examples", "layers", "drift", "training_log", "fired", "repairs", "chain", "metrics", "attack"]
)
def test_any_part_of_an_arm_may_be_missing(part):
    data = demo_record().plain()
    for arm in data["arms"]:
        arm.pop(part)
    Page(render(data))


def test_unmeasured_numbers_render_as_dashes_never_as_nan():
    data = demo_record().plain()
    for arm in data["arms"]:
        for metric in arm["metrics"].values():
            metric.update(value=None, low=None, high=None)
        for layer in arm["layers"]:
            layer.update(cosine=None, null_cosine=None, signed=None)
        for point in arm["drift"]:
            point.update(hidden=None, weight=None)
        for point in arm["training_log"]:
            point["loss"] = None
        for fired in arm["fired"].values():
            fired.update(mean=None, min=None, max=None)
    source = render(data)
    assert not re.search(r"\bnan\b", source, re.IGNORECASE)
    assert "0 of 7 expectations met, 7 missed" in Page(source).text


def test_examples_are_compared_by_prompt_and_judged_by_what_refusing_means():
    found = comparisons(demo_record())
    assert [one.about for one in found] == ["Harmful score (ASR)", "Over-refusal"]
    assert all(len(one.answers) == 7 for one in found)
    tones = {answer.label: (answer.verdict, answer.tone) for answer in found[0].answers}
    assert tones["Undefended"] == ("answered", "bad")
    assert tones["Lisa"] == ("refused", "good")
    assert {(a.verdict, a.tone) for a in found[1].answers} == {("answered", "good")}


def test_an_unjudged_answer_is_neutral():
    data = demo_record().plain()
    data["arms"][0]["examples"][0]["refused"] = None
    answer = comparisons(Record.read(data))[0].answers[0]
    assert (answer.verdict, answer.tone) == ("unjudged", "neutral")


def test_a_defence_that_never_acted_is_a_warning():
    data = demo_record().plain()
    next(a for a in data["arms"] if a["name"] == "lisa")["fired"]["Lisa"]["count"] = 0
    text = Page(render(data)).text
    assert "Lisa: Lisa never acted." in text
    assert "0: never" in text


def test_a_failed_defence_leads_the_page():
    data = demo_record().plain()
    next(a for a in data["arms"] if a["name"] == "lisa")["metrics"]["harmful_requests"] = share(62, 64)
    text = Page(render(data)).text
    assert text.index("failed to lower it clearly: Lisa") < text.index("Measured")


def test_writing_returns_the_path_and_replaces_whole(tmp_path):
    out = tmp_path / "deep" / "report.html"
    assert write_report(demo_record().plain(), out) == out
    first = out.read_text(encoding="utf-8")
    assert first.lstrip().startswith("<!doctype html>")
    assert write_report(bare(), out) == out
    assert out.read_text(encoding="utf-8") != first
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_a_wrong_record_leaves_the_old_report(tmp_path):
    out = write_report(bare(), tmp_path / "report.html")
    before = out.read_bytes()
    with pytest.raises(DataError, match="surprise"):
        write_report({**bare(), "surprise": 1}, out)
    assert out.read_bytes() == before


def test_the_same_record_gives_the_same_bytes():
    assert render(demo_record()) == render(demo_record().plain())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (59.94, "59.9 s"),
        (59.99, "1 min 0 s"),
        (512, "8 min 32 s"),
        (7260, "2 h 1 min"),
        (float("nan"), "–"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_sizes():
    assert [size(None), size(8 << 30), size(50 << 20)] == ["–", "8.0 GiB", "50 MiB"]
