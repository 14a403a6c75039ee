"""The steps and sparsities of mask updates."""

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.errors import ConfigError
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.ramps import Stepwise, cosine, cubic, linear, one_shot
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.update_schedule import (
    last_update,
    lasting_updates,
    periodic_updates,
    ramp_updates,
)

from .schedules import RAMPS, cubic_oracle, schedules, tables


def updates_oracle(schedule, total_steps, updates):
    """Steps and sparsities of the cubic ramp, in exact arithmetic."""
    first = round(Fraction(schedule.begin) * total_steps)
    last = round(Fraction(schedule.end) * total_steps)
    plan = {}
    for k in range(updates + 1):
        way = Fraction(k, updates)
        progress = Fraction(schedule.begin) * (1 - way) + Fraction(schedule.end) * way
        sparsity = cubic_oracle(schedule, progress)
        if sparsity > 0:
            plan[max(1, first + round((last - first) * way))] = sparsity
    return plan


@given(schedules(tables(), rise=0.01), st.integers(64, 3000), st.integers(1, 200))
def test_ramp_updates_stepwise_has_one_update_per_level(schedule, total_steps, updates):
    initial, final = schedule.initial, schedule.final
    begin, end = (round(Fraction(x) * total_steps) for x in (schedule.begin, schedule.end))
    expected, reached = {}, 0.0
    for point, share in {0.0: 0.0, **schedule.ramp.levels}.items():
        sparsity = final if share == 1.0 else initial + (final - initial) * share
        if sparsity > reached:
            expected[max(1, begin + round((end - begin) * Fraction(point)))] = sparsity
            reached = sparsity
    plan = ramp_updates(schedule, total_steps=total_steps, updates=updates)
    assert list(plan) == list(expected)
    assert list(plan.values()) == pytest.approx(list(expected.values()), abs=1e-12)


def test_ramp_updates_own_breakpoints_end_at_final():
    class Half:
        breakpoints = (0.5,)

        def __call__(self, u):
            return 0.5 if u >= 0.5 else 0.0

    schedule = Schedule(final=0.8, initial=0.4, ramp=Half())
    plan = ramp_updates(schedule, total_steps=10, updates=3)
    assert plan == pytest.approx({1: 0.4, 5: 0.6, 10: 0.8})
    assert plan[10] == 0.8


@given(schedules(st.just(cubic), rise=0.01), st.integers(1, 3000), st.integers(1, 200))
def test_ramp_updates_against_exact_arithmetic(schedule, total_steps, updates):
    first, last = (round(Fraction(x) * total_steps) for x in (schedule.begin, schedule.end))
    if first == last:
        with pytest.raises(ConfigError, match="lies no step of this run"):
            ramp_updates(schedule, total_steps=total_steps, updates=updates)
        return
    plan = ramp_updates(schedule, total_steps=total_steps, updates=updates)
    expected = updates_oracle(schedule, total_steps, updates)
    assert list(plan) == list(expected)
    assert list(plan.values()) == pytest.approx([float(s) for s in expected.values()], abs=1e-12)


@given(schedules(), st.integers(64, 3000), st.integers(1, 200))
def test_ramp_updates_rise_to_exactly_final(schedule, total_steps, updates):
    plan = ramp_updates(schedule, total_steps=total_steps, updates=updates)
    steps, sparsities = list(plan), list(plan.values())
    assert steps == sorted(steps)
    assert sparsities == sorted(set(sparsities))
    if schedule.final > 0:
        assert steps[0] >= 1
        assert steps[-1] <= total_steps
        assert sparsities[-1] == schedule.final
        levels = getattr(schedule.ramp, "levels", range(updates))
        assert len(plan) <= len(levels) + 1


@pytest.mark.parametrize(
    ("schedule", "total_steps", "updates", "expected"),
    [
        pytest.param(Schedule(final=0.9), 1, 100, {1: 0.9}, id="one step"),
        pytest.param(Schedule(final=0.8, ramp=linear), 2, 2, {1: 0.4, 2: 0.8}, id="linear"),
        pytest.param(Schedule(final=0.9, ramp=one_shot), 10, 4, {1: 0.9}, id="one shot"),
        pytest.param(
            Schedule(final=0.9, ramp=one_shot, begin=0.5), 10, 4, {5: 0.9}, id="one shot, late"
        ),
        pytest.param(
            Schedule(final=0.9, initial=0.7, ramp=linear, begin=0.2, end=0.6),
            10,
            2,
            {2: 0.7, 4: 0.8, 6: 0.9},
            id="a jump, then recovery",
        ),
        pytest.param(Schedule(final=0.0), 10, 4, {}, id="dense"),
        pytest.param(
            Schedule(final=0.9, ramp=cosine),
            4,
            4,
            {1: 0.1318, 2: 0.45, 3: 0.7682, 4: 0.9},
            id="cosine",
        ),
        pytest.param(
            Schedule(final=0.8, ramp=Stepwise(levels={0.2: 0.5, 0.6: 1.0})),
            10,
            3,
            {2: 0.4, 6: 0.8},
            id="stepwise, between updates",
        ),
        pytest.param(
            Schedule(final=0.8, ramp=Stepwise(levels={0.0: 0.25, 0.29: 0.5, 1.0: 1.0})),
            100,
            7,
            {1: 0.2, 29: 0.4, 100: 0.8},
            id="stepwise, from the start",
        ),
        pytest.param(
            Schedule(final=0.8, ramp=Stepwise(levels={0.5: 0.5, 0.51: 0.75, 0.52: 1.0})),
            10,
            100,
            {5: 0.8},
            id="stepwise, levels on one step",
        ),
        pytest.param(
            Schedule(
                final=0.9, initial=0.7, begin=0.1, end=0.6, ramp=Stepwise(levels={0.5: 0.5, 1: 1})
            ),
            100,
            9,
            {10: 0.7, 35: 0.8, 60: 0.9},
            id="stepwise, a jump, then recovery",
        ),
        pytest.param(
            Schedule(final=0.9, begin=0.28, end=0.29), 100, 1, {29: 0.9}, id="0.29 * 100 < 29"
        ),
        pytest.param(
            Schedule(final=0.9, begin=0.09, end=0.34, ramp=linear),
            100,
            1,
            {34: 0.9},
            id="0.09 + (0.34 - 0.09) < 0.34",
        ),
    ],
)
def test_ramp_updates(schedule, total_steps, updates, expected):
    made = ramp_updates(schedule, total_steps=total_steps, updates=updates)
    assert list(made) == list(expected)
    assert list(made.values()) == pytest.approx(list(expected.values()), rel=1e-4)
    assert max(made.values(), default=0.0) == schedule.final


@pytest.mark.parametrize(
    ("total_steps", "updates", "message"),
    [
        (100, 0, "updates=0"),
        (0, 10, "total_steps=0"),
        (10, 10, r"begin=0.5: between begin and end=0.52 lies no step of this run of 10"),
    ],
)
def test_ramp_updates_unsuitable_run_raises(total_steps, updates, message):
    schedule = Schedule(final=0.9, begin=0.5, end=0.52)
    with pytest.raises(ConfigError, match=message):
        ramp_updates(schedule, total_steps=total_steps, updates=updates)


@st.composite
def pauses(draw):
    """A schedule with milestones, and a run long enough for them."""
    count = draw(st.integers(1, 4))
    ramp = draw(RAMPS)
    final = draw(st.floats(0.5, 0.99))
    within = draw(
        st.lists(
            st.floats(0.02, 0.98), min_size=count, max_size=count, unique_by=lambda x: round(x, 2)
        )
    )
    begin = draw(st.floats(0.0, 0.2))
    end = draw(st.floats(0.6, 1.0))
    milestone_length = draw(st.floats(0.1, 0.9)) * (end - begin) / count
    schedule = Schedule(
        final=final,
        begin=begin,
        end=end,
        ramp=ramp,
        milestones=sorted(final * x for x in within),
        milestone_length=milestone_length,
    )
    return schedule, draw(st.integers(200, 3000))


@given(pauses(), st.integers(1, 300))
def test_ramp_updates_milestones_pause_and_end_is_kept(given_, updates):
    schedule, total_steps = given_
    plan = ramp_updates(schedule, total_steps=total_steps, updates=updates)
    assert list(plan) == sorted(plan)
    assert list(plan.values()) == sorted(plan.values())
    assert max(plan) <= round(schedule.end * total_steps)
    assert list(plan.values())[-1] == schedule.final
    steps = list(plan)
    for milestone in schedule.milestones:
        place = list(plan.values()).index(milestone)
        milestone_length = steps[place + 1] - max(steps[place], 1)
        assert (
            milestone_length >= round(schedule.milestone_length * total_steps) - 1
        )  # the first step is 1, not 0


@given(pauses())
def test_schedule_milestones_agree_with_ramp_updates(given_):
    schedule, total_steps = given_
    plan = ramp_updates(schedule, total_steps=total_steps)
    milestone_length = round(schedule.milestone_length * total_steps)
    for step, sparsity in plan.items():
        if sparsity in schedule.milestones and milestone_length > 8:  # steps are rounded
            assert schedule((step + milestone_length / 2) / total_steps) == sparsity
    sparsities = [schedule(k / 100) for k in range(101)]
    assert sparsities == sorted(sparsities)
    assert sparsities[-1] == schedule.final


def test_milestone_length_without_milestones_is_ignored():
    plain, held = Schedule(final=0.9), Schedule(final=0.9, milestone_length=0.7)
    assert ramp_updates(plain, total_steps=977) == ramp_updates(held, total_steps=977)


def test_ramp_updates_milestones_longer_than_ramp_raise():
    schedule = Schedule(final=0.9, milestones=[0.5], milestone_length=0.1)
    with pytest.raises(
        ConfigError, match=r"milestone_length=0\.1: 1 milestones of .* do not fit into the 10 steps"
    ):
        ramp_updates(schedule, total_steps=10)


@given(st.floats(0, 0.99), st.floats(0.1, 1), st.integers(1, 30), st.integers(30, 200))
def test_lasting_updates_go_on_at_the_same_distance(final, end, updates, steps):
    """Independent: the steps of the ramp, continued as multiples of one exact interval."""
    schedule = Schedule(final=final, end=end)
    plan = lasting_updates(schedule, total_steps=steps, updates=updates)
    on_ramp = periodic_updates(schedule, total_steps=steps, updates=updates)
    last = round(end * steps)
    assert {step: s for step, s in plan.items() if step <= last} == on_ramp
    after = [round(Fraction(last * k, updates)) for k in range(updates + 1, steps * updates + 1)]
    expected = {step for step in after if step <= steps} - on_ramp.keys()
    assert {step: s for step, s in plan.items() if step > last} == dict.fromkeys(expected, final)


def test_last_update_is_the_only_one():
    schedule = Schedule(final=0.8, begin=0.25, end=0.5)
    assert last_update(schedule, total_steps=40, updates=7) == {20: 0.8}
    with pytest.raises(ConfigError, match="begin"):
        last_update(schedule, total_steps=1)


@pytest.mark.parametrize(
    "ramp",
    [lambda u: np.sin(u * np.pi / 2), lambda u: torch.sin(torch.tensor(u * np.pi / 2))],
    ids=["numpy", "torch"],
)
def test_own_ramp_gives_plain_numbers(ramp):
    updates = ramp_updates(Schedule(final=0.8, ramp=ramp), total_steps=10)
    assert {type(sparsity) for sparsity in updates.values()} == {float}
    pruner = Pruner({"w": torch.nn.Parameter(torch.randn(10))}, Schedule(final=0.8, ramp=ramp),
                    total_steps=10)  # fmt: skip
    assert pruner.update(3)
    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["target"] == pruner.target


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({0: 0.5, 5: 0.8}, r"own: plans an update at step 0; a run of 10 steps has 1 to 10"),
        ({5: 0.4, 500: 0.8}, r"own: plans an update at step 500; a run of 10"),
        ({5: 0.3}, r"own: its last update is to the sparsity 0\.3, not to final=0\.8"),
        ({5: 1.5}, r"own: its last update is to the sparsity 1\.5"),
        ({5: 0.8, 10: 0.2}, r"own: its last update is to the sparsity 0\.2"),
        ({}, r"own: its last update is to the sparsity 0,"),
    ],
)
def test_own_update_schedule_is_checked(plan, says):
    def own(schedule, *, total_steps, updates):
        return plan

    weights = {"w": torch.nn.Parameter(torch.randn(10))}
    with pytest.raises(ConfigError, match=rf"update_schedule=\S*\b{says}"):
        Pruner(weights, Schedule(final=0.8), total_steps=10, update_schedule=own)


def test_own_update_schedule_may_be_unsorted_and_of_numpy():
    def own(schedule, *, total_steps, updates):
        return {np.int64(10): np.float64(0.8), np.int64(5): np.float64(0.4)}

    weights = {"w": torch.nn.Parameter(torch.randn(10))}
    pruner = Pruner(weights, Schedule(final=0.8), total_steps=10, update_schedule=own)
    assert list(pruner.update_schedule.items()) == [(5, 0.4), (10, 0.8)]
    assert {*map(type, pruner.update_schedule)} == {int}
