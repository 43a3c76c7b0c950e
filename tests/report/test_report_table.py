# SPDX-License-Identifier: Apache-2.0
import math
import re

import pytest
from rich.console import Console

from moored.report.demo import demo_record, share
from moored.report.record import Record, Share
from moored.report.table import cells, estimate, heads, markdown, table


def shown(record, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(record))
    console.file.close()
    return console.export_text()


def one(**metrics):
    return {
        "name": "x",
        "tasks": [{"name": "hs", "title": "ASR", "role": "safety", "better": "lower"}],
        "arms": [
            {"name": name, "title": name, "metrics": {"hs": value} if value else {}} for name, value in metrics.items()
        ],
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Share(value=93.75, low=85.0, high=97.5, n=64), "93.8 [85, 98]"),
        (Share(value=0.0, low=0.0, high=5.66, n=64), "0.0 [0, 6]"),
        (Share(value=50.0, n=3), "50.0"),
        (Share(value=50.0, n=3, disagreement=0.0), "50.0"),
        (
            Share(value=90.0, n=5, parts={"safe refused": Share(value=20.0, low=10.0, high=30.0, n=2)}),
            "90.0 (safe refused 20.0 [10, 30])",
        ),
        (Share(value=93.75, low=85.0, high=97.5, n=64, disagreement=100 / 64), "93.8 [85, 98] split 1.6%"),
        (Share(value=math.nan, n=0), "–"),
        (None, "–"),
    ],
)
def test_an_estimate_reads_value_and_interval(value, text):
    assert estimate(value) == text


def test_n_stands_in_the_head_when_common_else_in_the_cell():
    same = Record.read(one(a=share(3, 64), b=share(4, 64)))
    assert heads(same)[1] == "ASR\n↓ %, n=64"
    assert cells(same, same.arms[0])[1] == "4.7 [2, 13]"
    mixed = Record.read(one(a=share(3, 64), b=share(4, 32)))
    assert heads(mixed)[1] == "ASR\n↓ %"
    assert [cells(mixed, arm)[1][-4:] for arm in mixed.arms] == ["n=64", "n=32"]


@pytest.mark.parametrize("width", [80, 100])
def test_it_fits_and_no_number_is_cut(width):
    record = demo_record()
    lines = shown(record, width).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    text = "\n".join(lines)
    for arm in record.arms:
        for cell in cells(record, arm)[1:]:
            assert cell in text
    assert "…" not in text


def test_an_audit_with_four_columns_folds_at_80_and_loses_nothing():
    names = ("harmful score / ASR", "over-refusal", "accuracy", "embedding drift")
    shares = [{"value": value, "low": 57.0, "high": high, "n": 64} for value, high in ((100, 100), (68, 79), (64, 75))]
    shares.append({"value": 0.29712, "low": 0.29412, "high": 0.29912, "n": 64, "unit": "of the norm"})
    record = one(a=None) | {"limit": 10.0}
    record["tasks"] = [
        {"name": name, "title": name, "role": "utility", "better": "lower", "judge": "x"} for name in names
    ]
    record["arms"][0] |= {
        "title": "finetune-2ea28d05d369697d/model (after)",
        "metrics": dict(zip(names, shares, strict=True)),
    }
    words = shown(record).split()
    assert words.count("n=64") == 4
    assert {"drift", "0.297", "[0.294,", "0.299]", "100]", "79]", "75]"} <= set(words)


def test_the_numbers_are_those_of_the_record():
    record = demo_record()
    rows = {line.split(" | ")[0].strip("| "): line for line in markdown(record).splitlines() if line.startswith("|")}
    for arm in record.arms:
        found = [float(x) for x in re.findall(r"(?<![\[\d.])(\d+\.\d)(?= \[)", rows[arm.title])]
        expected = [round(arm.metrics[task.name].value, 1) for task in record.tasks]
        assert found == pytest.approx(expected, abs=0.051)


def test_references_come_first_and_are_dim():
    data = demo_record().plain()
    data["arms"].reverse()
    grid = table(data)
    first = next(iter(grid.columns[0].cells))
    assert first in ("Aligned start", "Instruct model as shipped")
    assert [row.style for row in grid.rows].count("dim") == 2
    assert [row.style for row in grid.rows][:2] == ["dim", "dim"]


def test_missed_expectations_are_said():
    assert "6 of 7 expectations met; missed: Undefended + Safe LoRA: task accuracy" in markdown(demo_record())


def test_markup_in_titles_is_inert():
    data = one(a=share(3, 64))
    data["arms"][0]["title"] = "[red]x[/red] | `y` <script>"
    assert "[red]x[/red] | `y` <script>" in shown(data, 100)
    row = next(line for line in markdown(data).splitlines() if "script" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == len(heads(Record.read(data))) + 1
    assert "\\<script>" in row


def test_made_up_numbers_say_so():
    assert "made-up" in markdown(demo_record())
    assert "made-up" in shown(demo_record())
    assert "made-up" not in markdown(one(a=share(1, 2)))


def test_nothing_measured_is_a_dash_not_a_zero():
    record = Record.read(one(a=None, b=share(0, 10)))
    assert cells(record, record.arms[0]) == ["a", "–", "–", "–"]


def test_unjudged_answers_are_counted():
    data = one(a={**share(3, 60), "unjudged": 4})
    assert "4 answers could not be judged" in markdown(data)
