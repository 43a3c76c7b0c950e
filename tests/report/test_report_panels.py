# SPDX-License-Identifier: Apache-2.0
import re
from xml.etree import ElementTree

import pytest

from moored.report import panels, plot, svg
from moored.report.demo import demo_record, share
from moored.report.record import Arm, Record, Share

NS = "{http://www.w3.org/2000/svg}"


def many(titles=10, strengths=(0.25, 0.5, 1.0)):
    """The made-up record with baselines at three scales and methods at several strengths."""
    record = demo_record()
    plain = [arm for arm in record.arms if arm.kind == "start" or arm.undefended]

    def arm(title, strength, place, baseline=False):
        scores = {"harmful_requests": int(64 * strength), "utility": 20 + 4 * place, "over_refusal": 3}
        metrics = {
            task.name: Share.model_validate(share(scores.get(task.name, 5), 64), strict=False) for task in record.tasks
        }
        name = f"{title}@{strength}"
        return Arm(
            name=name, title=title, methods=[title], baseline=baseline, sweep={"strength": strength}, metrics=metrics
        )

    scaled = [arm("Scale", s, 0, baseline=True) for s in strengths]
    methods = [arm(f"Method {i}", s, i) for i in range(titles) for s in reversed(strengths)]
    return record.model_copy(update={"arms": [*plain, *scaled, *methods], "expectations": []})


def marks(image):
    found = ElementTree.fromstring(image).iter(f"{NS}path")
    return [mark for mark in found if (mark.get("class") or "").startswith("mark") and len(mark)]


def place(mark):
    return tuple(map(float, re.match(r"translate\(([\d.-]+) ([\d.-]+)\)", mark.get("transform")).groups()))


def test_every_method_has_a_panel_with_all_strengths_and_all_baselines():
    record = many()
    image = panels.panels(record)
    by_tip = [mark[0].text.split(":")[0] for mark in marks(image)]
    for number in range(10):
        for strength in ("0.25", "0.5", "1"):
            assert by_tip.count(f"Method {number} (strength {strength})") == 1
    for strength in ("0.25", "0.5", "1"):
        assert by_tip.count(f"Scale (strength {strength})") == 10
    assert by_tip.count("Undefended") == 10
    assert {"hollow" in mark.get("class") for mark in marks(image) if mark[0].text.startswith("Scale")} == {True}
    assert {"hollow" in mark.get("class") for mark in marks(image) if mark[0].text.startswith("Method")} == {False}


def test_a_point_stands_where_its_scores_are_within_its_own_panel():
    record = many()
    drawn = {mark[0].text.split(":")[0]: place(mark) for mark in marks(panels.panels(record))}
    one, other = drawn["Method 0 (strength 1)"], drawn["Method 0 (strength 0.25)"]
    assert one[0] == pytest.approx(other[0])  # equal accuracy
    assert other[1] > one[1]  # less harm stands lower
    assert other[1] - one[1] == pytest.approx(0.75 * panels._HEIGHT, abs=0.02)
    assert (
        len({y for x, y in (drawn[f"Method {i} (strength 1)"] for i in range(10))}) == 4
    )  # ten panels in three columns


def test_the_picture_fits_its_frame_and_says_its_numbers():
    record = many()
    image = panels.panels(record)
    root = ElementTree.fromstring(image)
    width, height = map(float, root.get("viewBox").split()[2:])
    for mark in marks(image):
        x, y = place(mark)
        assert 0 <= x <= width
        assert 0 <= y <= height
    for text in root.iter(f"{NS}text"):
        assert 0 < float(text.get("y")) <= height
    assert "Method 3 (strength 0.5)" in root.find(f"{NS}desc").text
    assert "nan" not in image
    assert ElementTree.fromstring(svg.standalone(image))[0].tag == f"{NS}style"


def test_a_study_of_many_methods_at_several_strengths_is_drawn_in_panels():
    assert "by method" in plot.plots(many())["frontier"]
    assert "by method" not in plot.plots(many(titles=3))["frontier"]
    assert "by method" not in plot.plots(many(titles=10, strengths=(1.0,)))["frontier"]


def test_nothing_is_drawn_without_a_method_or_a_second_task():
    record = many(titles=0)
    assert panels.panels(record) == ""
    bare = [task for task in many().tasks if task.role != "utility"]
    assert panels.panels(Record.model_copy(many(), update={"tasks": bare})) == ""
