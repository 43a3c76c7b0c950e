# SPDX-License-Identifier: Apache-2.0
"""Every repair of the catalogue, in a setting in which it acts, and what it acts on."""

from dataclasses import replace

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from moored.catalogue import catalogue
from moored.data.tiny import tiny_rows
from moored.repairs.engine import repair
from repairs.repair_models import factors, weights

REPAIRS = catalogue("repairs")
ACTIVE = {"drop_modules": {"fraction": 0.5}, "recover": {"steps": 4}, "somf": {"steps": 3}}
"""Parameters under which a repair acts, where its defaults are not enough or take long."""
MIXING = {"ties"}
"""Repairs without parameters at which they do nothing."""
ADDING = {"resta", "task_arithmetic", "lox_repair", *MIXING}
"""Repairs that add what the update has nothing of: a model that was not tuned does not stay as it is."""

every = pytest.mark.parametrize("name", REPAIRS)


def active(name):
    return REPAIRS[name](**ACTIVE.get(name, {}))


def models(trio):
    return {"aligned": trio.aligned, "base": trio.base, "unaligned": trio.unaligned, "safe": trio.safe}


def everything(trio):
    """Models and rows."""
    return models(trio) | rows()


def rows():
    """Rows of all roles; the harmful and the safe answers are to the same questions."""
    harmful, safe = tiny_rows(5, "harmful"), tiny_rows(5, "alignment")
    safe = [replace(s, messages=(*h.prompt, s.messages[-1])) for h, s in zip(harmful, safe, strict=True)]
    return {"harmful": harmful, "alignment": safe, "calibration": tiny_rows(5)}


def on_model(method):
    """The method for a full checkpoint, which has no factors."""
    return replace(method, target="update") if getattr(method, "target", "") == "factors" else method


def run(trio, method, out, tuned=None, **more):
    """Repair an adapter; into a full model if nothing less can hold the result."""
    return repair(tuned or trio.adapter, method, out=out, merge=method.form == "dense", **everything(trio) | more)


def updates(folder, trio):
    """tuned - aligned by module, as plain PEFT and transformers compute it."""
    if (folder / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trio.aligned), folder)
        model = model.merge_and_unload().state_dict()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    start = weights(trio.aligned)
    return {m: model[f"{m}.weight"] - start[f"{m}.weight"] for m in factors(trio.adapter)}
