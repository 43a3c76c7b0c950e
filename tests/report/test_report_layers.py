# SPDX-License-Identifier: Apache-2.0
"""Drift by layer: what stands in which row, and the two plots."""

import xml.etree.ElementTree as ET

import pytest

from moored.report.html import render
from moored.report.layers import by_layer, hidden, rows, weights
from moored.report.record import Arm, Record


def arm(**fields):
    share = {"n": 12, "unit": "of the norm"}
    depths = [
        {"depth": i, "distance": share | {"value": i / 10, "low": i / 20, "high": i / 5}, "angle": i / 100}
        for i in range(3)
    ]
    matrices = [
        {"module": "model.layers.0.self_attn.q_proj", "distance": 0.25},
        {"module": "model.layers.0.mlp.up_proj", "distance": 0.75},
        {"module": "model.layers.1.mlp.up_proj", "distance": 0.125},
        {"module": "lm_head", "distance": 0.5},
    ]
    return Arm.model_validate({"name": "after", "title": "<m>", "depths": depths, "weights": matrices} | fields)


def test_weights_stand_beside_the_hidden_states_behind_them():
    assert rows(arm()) == [
        ["embeddings", "0 [0, 0]", "0", "–", "–"],
        ["1", "0.1 [0.05, 0.2]", "0.01", "0.5", "mlp.up_proj (0.75)"],
        ["2", "0.2 [0.1, 0.4]", "0.02", "0.125", "mlp.up_proj (0.125)"],
        ["elsewhere", "–", "–", "0.5", "lm_head (0.5)"],
    ]
    assert [drift.layer for drift in by_layer(arm())] == [0, 1, 2, None]


@pytest.mark.parametrize("plot", [hidden, weights])
def test_a_plot_is_an_image_with_words(plot):
    image = ET.fromstring(plot(arm()))
    assert image.get("role") == "img"
    assert "layer 2" in plot(arm())
    assert plot(arm(depths=[], weights=[])) == ""


def test_every_matrix_and_every_layer_has_its_mark():
    assert weights(arm()).count("<title>model.layers") == 3
    assert hidden(arm()).count("<title>layer ") == 3


def test_the_page_has_a_section_only_where_something_was_measured():
    task = {"name": "hr", "title": "harmful score", "role": "safety", "better": "lower"}
    with_, without = (
        render(Record(name="audit", limit=10, tasks=[task], arms=[one])) for one in (arm(), arm(depths=[], weights=[]))
    )
    assert "Drift by layer" in with_
    assert "&lt;m&gt;" in with_
    assert "Drift by layer" not in without
