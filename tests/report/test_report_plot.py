# SPDX-License-Identifier: Apache-2.0
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.report import plot, svg
from moored.report.demo import demo_record
from moored.report.record import Record
from moored.report.svg import Axis, Box

NS = "{http://www.w3.org/2000/svg}"
SWEEP = (0.0, 0.05, 0.1, 0.2)


def tree(image):
    return ElementTree.fromstring(image)


def texts(image):
    return " ".join(element.text or "" for element in tree(image).iter(f"{NS}text"))


def marks(image):
    return [e for e in tree(image).iter(f"{NS}path") if (e.get("class") or "").startswith("mark")]


@pytest.mark.parametrize("record", [demo_record(), demo_record(ratios=SWEEP)], ids=["one", "sweep"])
def test_every_plot_is_accessible_xml_without_links_or_nan(record):
    drawn = plot.plots(record)
    assert len(drawn) >= 9
    for name, image in drawn.items():
        root = tree(image)
        assert root.tag == f"{NS}svg", name
        assert root.get("role") == "img"
        assert [child.tag for child in root][:2] == [f"{NS}title", f"{NS}desc"]
        assert root[0].text
        assert root[1].text
        assert "nan" not in re.sub(r">[^<]*<", "><", image)
        assert "inf" not in re.sub(r">[^<]*<", "><", image)
        assert set(re.findall(r"https?://[^\"' ]+", image)) == {"http://www.w3.org/2000/svg"}
        assert "<style" not in image
        assert ElementTree.fromstring(svg.standalone(image))[0].tag == f"{NS}style"


def test_the_axes_carry_units():
    drawn = plot.plots(demo_record(ratios=SWEEP))
    assert "Harmful rows in the upload, %" in texts(drawn["ratio-harmful_requests"])
    assert "Task accuracy, %: right is better" in texts(drawn["frontier"])
    assert "Harmful score (ASR), %: down is better" in texts(drawn["frontier"])
    assert "Optimizer steps" in texts(drawn["drift-hidden"])
    assert "L2" in texts(drawn["drift-weight"])
    assert "nats per token" in texts(drawn["loss"])


def test_intervals_place_dot_and_whisker_where_the_numbers_are():
    record = demo_record()
    image = plot.intervals(record, record.tasks[0])
    found = {}
    for mark in marks(image):
        found[mark[0].text.split(":")[0]] = float(re.match(r"translate\(([\d.-]+)", mark.get("transform"))[1])
    zero, full = found["Undefended + Safe LoRA"], found["Undefended"]
    scale = (full - zero) / 95.3125
    for arm in record.arms:
        share = arm.metrics["harmful_requests"]
        assert found[arm.title] == pytest.approx(zero + scale * share.value, abs=0.1)
    ends = sorted(
        (float(e.get("x1")), float(e.get("x2"))) for e in tree(image).iter(f"{NS}line") if "whisker" in e.get("class")
    )
    expected = sorted(
        (zero + scale * a.metrics["harmful_requests"].low, zero + scale * a.metrics["harmful_requests"].high)
        for a in record.arms
    )
    for got, want in zip(ends, expected, strict=True):
        assert got == pytest.approx(want, abs=0.1)
    shown = texts(image)
    for arm in record.arms:
        assert f"{arm.metrics['harmful_requests'].value:.1f} [" in shown


def test_baselines_are_hollow_and_defences_are_filled():
    record = demo_record()
    for mark in marks(plot.frontier(record)):
        title = mark[0].text.split(":")[0]
        arm = next(a for a in record.arms if a.title == title)
        plain = arm.kind == "start" or arm.baseline or not arm.methods
        assert ("hollow" in mark.get("class")) is plain, title


def test_every_arm_is_labelled_on_the_frontier_and_no_label_overlaps():
    record = demo_record()
    image = plot.frontier(record)
    for arm in record.arms:
        assert arm.title in texts(image)
    labels = {arm.title for arm in record.arms}
    boxes = [
        Box(x=float(e.get("x")), y=float(e.get("y")) - svg.FONT, width=svg.width(e.text), height=svg.FONT)
        for e in tree(image).iter(f"{NS}text")
        if e.text in labels
    ]
    assert len(boxes) == len(record.arms)
    for i, box in enumerate(boxes):
        assert box.x >= 0
        assert box.x + box.width <= svg.WIDTH
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_the_ratio_plot_needs_two_ratios_and_draws_a_line_per_title():
    one, many = demo_record(), demo_record(ratios=SWEEP)
    assert plot.against_ratio(one, one.tasks[0]) == ""
    image = plot.against_ratio(many, many.tasks[0])
    lines = [e for e in tree(image).iter(f"{NS}path") if (e.get("class") or "").startswith("line")]
    assert len(lines) == 5
    assert all(line.get("d").count("L") == len(SWEEP) - 1 for line in lines)


def test_cosines_fill_what_was_edited():
    record = demo_record()
    arm = record.arm("safe_lora")
    drawn = [m for m in marks(plot.cosines(arm, "x")) if len(m)]
    assert len(drawn) == len(arm.layers) == 210
    filled = sum("hollow" not in m.get("class") for m in drawn)
    assert filled == sum(row.edited for row in arm.layers)
    shown = texts(plot.cosines(arm, "x"))
    assert all(kind in shown for kind in ("q_proj", "down_proj", "Layer"))
    assert "112 of 210 matrices edited" in plot.cosines(arm, "x")


def test_cosines_of_matrices_outside_layers_or_without_number_draw_nothing():
    data = demo_record().plain()
    arm = next(a for a in data["arms"] if a["layers"])
    arm["layers"] = [
        {"module": "lm_head", "cosine": 0.5, "edited": True},
        {"module": "model.layers.0.mlp.up_proj", "cosine": None, "edited": False},
    ]
    record = Record.read(data)
    assert plot.cosines(record.arm(arm["name"]), "x") == ""


def test_runs_with_the_same_training_share_a_line():
    shown = texts(plot.drift(demo_record(), "hidden"))
    assert "Undefended" in shown
    assert "Vaccine + Lisa + Safe LoRA" in shown
    assert "adapter x 0.5" not in shown


def test_nan_breaks_a_line_and_does_not_reach_the_picture():
    data = demo_record().plain()
    for arm in data["arms"]:
        for point in arm["drift"][3:5]:
            point["hidden"] = None
        for point in arm["training_log"][7:8]:
            point["loss"] = None
    record = Record.read(data)
    image = plot.drift(record, "hidden")
    line = next(e for e in tree(image).iter(f"{NS}path") if e.get("class").startswith("line"))
    assert line.get("d").count("M") == 2
    assert "nan" not in plot.loss(record)


def test_nothing_to_draw_is_an_empty_string():
    record = Record.read(
        {
            "name": "x",
            "tasks": [{"name": "hs", "title": "ASR", "role": "safety", "better": "lower"}],
            "arms": [{"name": "a", "title": "A", "metrics": {"hs": {"value": None, "n": 0}}}],
        }
    )
    assert plot.plots(record) == {}


def test_titles_are_escaped():
    data = demo_record().plain()
    for arm in data["arms"]:
        arm["title"] = f"<script>&\"'{arm['name']}"
    for image in plot.plots(Record.read(data)).values():
        assert "<script" not in image
        tree(image)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_inside_and_enough(low, length):
    found = svg.ticks(low, low + length)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 * length <= tick <= low + length * (1 + 1e-6) for tick in found)
    steps = {round((b - a) / length, 6) for a, b in zip(found, found[1:], strict=False)}
    assert max(steps) - min(steps) < 1e-5 + 1e-9 * abs(low)


@given(st.text(), st.floats(20, 300), st.integers(1, 3))
def test_wrapped_lines_fit(content, room, lines):
    wrapped = svg.wrap(content, room, lines)
    assert len(wrapped) <= lines
    assert all(svg.width(line) <= room for line in wrapped)


def test_an_axis_of_no_length_does_not_divide_by_zero():
    assert Axis(low=1, high=1, start=0, end=10).at(1) == 5
    assert svg.ticks(3, 3) == [3]
    low, high = svg.span([2.0, 2.0])
    assert low < 2.0 < high
    assert svg.span([math.nan]) == (0.0, 1.0)


def test_place_gives_up_rather_than_overlap():
    full = Box(x=0, y=0, width=50, height=50)
    assert svg.place([(25, 25)], ["label"], [full], full) == [None]
