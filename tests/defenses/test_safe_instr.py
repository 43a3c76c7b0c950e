# SPDX-License-Identifier: Apache-2.0
import pytest

from contract.trainers import plain, sft
from moored.data.tiny import tiny_rows
from moored.defenses.safe_instr import SafeInstr
from moored.errors import ConfigError
from moored.protect import protect, release


@pytest.mark.parametrize(("parameters", "added"), [({"ratio": 0.25}, 6), ({"n": 3}, 3), ({"ratio": 0.001}, 1)])
@pytest.mark.parametrize("make", [plain, sft])
def test_it_adds_exactly_m_different_demonstrations(make, parameters, added, tmp_path):
    trainer = make(tmp_path, n=24)
    before = [tuple(r) for r in trainer.train_dataset["input_ids"]]
    protect(trainer, SafeInstr(**parameters), alignment=tiny_rows(12, "alignment"))
    after = [tuple(r) for r in trainer.train_dataset["input_ids"]]
    new = after[len(before) :]
    assert after[: len(before)] == before
    assert len(new) == len(set(new)) == added
    assert not set(new) & set(before)
    assert [tuple(r) for r in release(trainer).train_dataset["input_ids"]] == before


def test_asking_for_more_than_exist_is_refused(tmp_path):
    trainer = plain(tmp_path)
    with pytest.raises(ConfigError, match="would add 40 demonstrations, but `alignment` has 12"):
        protect(trainer, SafeInstr(n=40), alignment=tiny_rows(12, "alignment"))


@pytest.mark.parametrize(("parameters", "name"), [({"ratio": 1.5}, "ratio"), ({"n": 0}, "n")])
def test_bad_parameters(parameters, name):
    with pytest.raises(ConfigError, match=f"`{name}` of SafeInstr"):
        SafeInstr(**parameters)
