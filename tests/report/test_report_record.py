# SPDX-License-Identifier: Apache-2.0
import copy
import json
import math

import pytest

from moored.errors import ConfigError, DataError
from moored.report.demo import demo_record
from moored.report.record import Record, write_whole


def minimal(**more):
    return {
        "name": "x",
        "tasks": [{"name": "hs", "title": "Harmful score", "role": "safety", "better": "lower"}],
        "arms": [{"name": "a", "title": "A"}],
        **more,
    }


def broken(change):
    data = copy.deepcopy(demo_record().plain())
    change(data)
    return data


def test_plain_and_back_is_the_same_and_strict_json():
    plain = demo_record().plain()
    text = json.dumps(plain, allow_nan=False)
    assert Record.read(json.loads(text)).plain() == plain
    assert plain["arms"][0]["seconds"] is None
    assert math.isnan(Record.read(plain).arms[0].seconds)


def test_parts_of_a_number_are_written_only_where_there_are_any():
    plain = demo_record().plain()
    assert not any("parts" in share for arm in plain["arms"] for share in arm["metrics"].values())
    part = {**plain["arms"][0]["metrics"]["utility"]}
    plain["arms"][0]["metrics"]["utility"]["parts"] = {"half": part}
    read = Record.read(plain)
    assert read.arms[0].metrics["utility"].parts["half"].value == part["value"]
    assert read.plain() == plain


def test_nan_and_infinity_anywhere_become_null(tmp_path):
    record = Record.read(minimal(recipe={"lr": math.nan, "deep": [{"x": math.inf}]}, seconds=math.nan))
    path = record.save(tmp_path / "r.json")
    data = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"not JSON: {c}"))
    assert data["recipe"] == {"lr": None, "deep": [{"x": None}]}
    assert Record.load(path).plain() == data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["arms"][0].update(asr=1), "arms.0.asr"),
        (lambda d: d.pop("arms"), "arms"),
        (lambda d: d["arms"].append(d["arms"][0]), "arm instruct stands twice"),
        (lambda d: d["arms"][0]["metrics"].update(other={"value": 1, "n": 1}), "unknown task 'other'"),
        (lambda d: d["expectations"][0].update(arm="liza"), "unknown arm 'liza'"),
        (lambda d: d["expectations"][0].update(against="liza"), "unknown arm 'liza'"),
        (lambda d: d["arms"][0]["metrics"]["utility"].update(value=120.0, low=None, high=None), "0-100"),
        (lambda d: d["arms"][0]["metrics"]["utility"].update(low=50.0), "low <= value <= high"),
        (lambda d: d["arms"][0]["metrics"]["utility"].update(n=-1), "arms.0.metrics.utility.n"),
        (lambda d: d.update(seeds=[1, 1]), "seed 1 stands twice"),
        (lambda d: d.update(schema_version=2), "schema_version"),
    ],
)
def test_a_wrong_record_is_refused_by_name(change, said):
    with pytest.raises(DataError) as error:
        Record.read(broken(change))
    assert said in str(error.value)


def test_load_names_the_file_and_the_line(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(DataError, match=r"r\.json: cannot be read"):
        Record.load(path)
    path.write_text('{\n"name": oops}')
    with pytest.raises(DataError, match=r"r\.json, line 2: not JSON"):
        Record.load(path)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"r\.json: not a results record"):
        Record.load(path)


def test_seeds_default_to_the_seed():
    assert Record.read(minimal(seed=7)).seeds == [7]
    assert Record.read(minimal(seed=7, seeds=[7, 8])).seeds == [7, 8]


def test_every_field_is_described():
    silent, seen = [], set()

    def visit(model):
        if model in seen:
            return
        seen.add(model)
        for name, field in model.model_fields.items():
            for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(inner, type) and hasattr(inner, "model_fields"):
                    visit(inner)
            if not field.description:
                silent.append(f"{model.__name__}.{name}")

    visit(Record)
    assert silent == []
    assert len(seen) >= 12


@pytest.mark.parametrize(
    ("op", "bound", "value", "met"),
    [
        ("<=", 20, 20, True),
        ("<=", 20, 20.1, False),
        ("<", 20, 20, False),
        ("<", 20, 19.9, True),
        (">=", 80, 80, True),
        (">=", 80, 79.9, False),
        (">", 80, 80, False),
        (">", 80, 80.1, True),
        ("<=", 20, None, False),
        (">=", 20, None, False),
    ],
)
def test_expectations_are_computed_and_the_unmeasured_is_missed(op, bound, value, met):
    data = minimal(expectations=[{"arm": "a", "task": "hs", "op": op, "bound": bound}])
    data["arms"][0]["metrics"] = {"hs": {"value": value, "n": 10}}
    record = Record.read(data)
    assert record.met(record.expectations[0]) is met


def test_a_difference_is_taken_against_the_named_arm():
    data = minimal(expectations=[{"arm": "b", "task": "hs", "op": ">=", "bound": -10, "against": "a"}])
    data["arms"] = [
        {"name": "a", "title": "A", "metrics": {"hs": {"value": 80, "n": 10}}},
        {"name": "b", "title": "B", "metrics": {"hs": {"value": 69, "n": 10}}},
    ]
    record = Record.read(data)
    assert record.difference(record.expectations[0]) == -11
    assert not record.met(record.expectations[0])


def test_labels_tell_a_sweep_apart_and_only_then():
    swept = demo_record(ratios=(0.1, 0.2))
    assert swept.label(swept.arm("lisa@ratio=0.2")) == "Lisa (ratio 0.2)"
    assert swept.label(swept.arm("aligned")) == "Aligned start"
    assert demo_record().label(demo_record().arm("lisa")) == "Lisa"
    assert swept.label(swept.arm("lisa@ratio=0.2"), [swept.arm("lisa@ratio=0.2")]) == "Lisa"
    data = swept.plain()
    for arm in data["arms"]:
        arm["sweep"] = {f"attack.{axis}": value for axis, value in arm["sweep"].items()}
    dotted = Record.read(data)
    assert dotted.label(dotted.arm("lisa@ratio=0.2")) == "Lisa (ratio 0.2)"


def test_ratio_comes_from_the_sweep_else_the_attack():
    assert demo_record().arm("lisa").ratio == pytest.approx(0.1)
    assert demo_record().arm("aligned").ratio is None
    assert demo_record(ratios=(0.0, 0.2)).arm("lisa@ratio=0.2").ratio == 0.2


def test_an_unknown_arm_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown arm 'liza'; did you mean 'lisa'?"):
        demo_record().arm("liza")


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "r.html"
    assert write_whole(path, "one") == path
    assert path.read_text() == "one"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(DataError, match="No space left"):
        write_whole(path, "two")
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_a_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_whole(tmp_path / "file" / "r.html", "x")
