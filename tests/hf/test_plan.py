# SPDX-License-Identifier: Apache-2.0
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moored.hf.plan import USER, BatchPlan, PlannedBatchSampler, RolesDataset, optimizer_steps, scaled_cycle


def sampler(users=23, others=7, batch=4, accumulate=2, world=1, k1=1, k2=2, step=0, seed=0):
    steps = optimizer_steps(users, batch=batch, accumulate=accumulate, world=world)
    plan = BatchPlan.alternate("alignment", k1, k2, steps)
    data = RolesDataset({USER: list(range(users)), "alignment": list(range(100, 100 + others))})
    return PlannedBatchSampler(
        plan, data, batch=batch, accumulate=accumulate, world=world, seed=seed, global_step=lambda: step
    )


SIZES = {
    "users": st.integers(1, 60),
    "others": st.integers(1, 12),
    "batch": st.integers(1, 9),
    "accumulate": st.integers(1, 4),
    "world": st.integers(1, 3),
    "k1": st.integers(1, 4),
    "k2": st.integers(1, 5),
}


@given(**SIZES)
@settings(max_examples=80, deadline=None)
def test_every_user_row_once_and_no_batch_mixes_roles(**sizes):
    s = sampler(**sizes)
    batches = list(s)
    assert len(batches) == len(s)
    assert len(batches) % sizes["world"] == 0
    is_user = [[i < sizes["users"] for i in rows] for rows in batches]
    assert all(len(set(kinds)) == 1 for kinds in is_user)
    drawn = [i for rows in batches for i in rows if i < sizes["users"]]
    assert set(drawn) == set(range(sizes["users"]))
    if sizes["world"] == 1:
        assert len(drawn) == sizes["users"]
    window = sizes["accumulate"] * sizes["world"]
    for step, role in enumerate(s.plan.roles):
        kinds = {kind for flags in is_user[step * window : (step + 1) * window] for kind in flags}
        assert kinds == {role == USER}


@given(**SIZES)
@settings(max_examples=40, deadline=None)
def test_the_other_stream_goes_on_across_epochs_evenly(**sizes):
    """After k steps every row of the role was drawn floor or ceil of the same number of times."""
    first = sampler(**sizes)
    length = len(first.plan.roles)
    drawn = [0] * sizes["others"]
    for epoch in range(3):
        for rows in sampler(**sizes, step=epoch * length):
            for i in rows:
                if i >= sizes["users"]:
                    drawn[i - sizes["users"]] += 1
    assert max(drawn) - min(drawn) <= 1


def test_a_resumed_epoch_is_the_same_epoch():
    whole = list(sampler(step=0))
    length = len(sampler().plan.roles)
    for step in range(length):
        assert list(islice(sampler(step=step), 2 * step, None)) == whole[2 * step :]
    assert list(sampler(step=length)) != whole


def test_the_seed_changes_the_order():
    assert list(sampler(seed=1)) != list(sampler(seed=2))


def test_plan_counts():
    plan = BatchPlan.alternate("alignment", 2, 3, 4)
    assert "".join(role[0] for role in plan.roles) == "aauuuaau"
    assert [plan.steps("alignment", n) for n in (0, 1, 2, 5, 7, 8, 10)] == [0, 1, 2, 2, 4, 4, 6]
    assert plan.role_at(8) == "alignment"


@pytest.mark.parametrize(
    ("cycle", "epoch", "want"), [((100, 900), 5000, (100, 900)), ((100, 900), 90, (10, 90)), ((1, 900), 3, (1, 3))]
)
def test_scaled_cycle(cycle, epoch, want):
    assert scaled_cycle(*cycle, epoch) == want
