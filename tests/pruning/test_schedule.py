from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.pruning.schedule import (
    Schedule,
    Stepwise,
    cosine,
    cubic,
    linear,
    one_shot,
    update_plan,
)


@st.composite
def tables(draw):
    """Levels at multiples of 1/64, the last share 1."""
    points = sorted(draw(st.sets(st.integers(0, 64), min_size=1, max_size=6)))
    size = len(points) - 1
    shares = [*sorted(draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))), 1.0]
    return Stepwise(levels={point / 64: share for point, share in zip(points, shares, strict=True)})


SHAPES = st.one_of(st.sampled_from([cubic, linear, cosine, one_shot]), tables())


@st.composite
def schedules(draw, shapes=SHAPES, rise=0.0):
    """Any legal schedule; the ramp's ends are multiples of 1/64, so that products are exact."""
    initial = draw(st.floats(0, 0.9))
    final = draw(st.floats(initial + rise, 0.999))
    begin = draw(st.integers(0, 63))
    end = draw(st.integers(begin + 1, 64))
    return Schedule(
        final=final, initial=initial, begin=begin / 64, end=end / 64, shape=draw(shapes)
    )


def cubic_oracle(schedule, progress):
    """Zhu & Gupta's eq. 1 in exact arithmetic."""
    initial, final = Fraction(schedule.initial), Fraction(schedule.final)
    begin, end = Fraction(schedule.begin), Fraction(schedule.end)
    if progress < begin:
        return Fraction(0)
    u = min((progress - begin) / (end - begin), Fraction(1))
    return final + (initial - final) * (1 - u) ** 3


def plan_oracle(schedule, total_steps, updates):
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


@given(schedules(st.just(cubic)), st.fractions(0, 1, max_denominator=10_000))
def test_cubic_against_exact_arithmetic(schedule, progress):
    progress = float(progress)
    expected = cubic_oracle(schedule, Fraction(progress))
    assert schedule(progress) == pytest.approx(float(expected), abs=1e-12)


@given(schedules(), st.floats(0, 1))
def test_within_initial_and_final_from_begin_and_zero_before(schedule, progress):
    sparsity = schedule(progress)
    if progress < schedule.begin:
        assert sparsity == 0.0
    else:
        assert schedule.initial <= sparsity <= schedule.final


@given(schedules(), st.floats(0, 1), st.floats(0, 1))
def test_never_falls(schedule, one, other):
    assert schedule(min(one, other)) <= schedule(max(one, other))


@given(schedules())
def test_ends_are_exact(schedule):
    assert schedule(schedule.end) == schedule(1.0) == schedule.final
    assert schedule.along(0.0) == schedule(schedule.begin)
    assert schedule.along(1.0) == schedule.final
    if schedule.shape(0.0) == 0.0:
        assert schedule(schedule.begin) == schedule.initial


@given(SHAPES, st.floats(0, 1), st.floats(0, 1))
def test_shapes_lead_from_0_to_1(shape, one, other):
    assert 0.0 <= shape(min(one, other)) <= shape(max(one, other)) <= shape(1.0) == 1.0


@pytest.mark.parametrize("shape", [cubic, linear, cosine])
def test_smooth_shapes_start_at_0(shape):
    assert shape(0.0) == 0.0


def cosine_oracle(u, terms=25):
    """½ (1 - cos πu) in exact arithmetic, from the Taylor series of the cosine."""
    square = (Fraction("3.14159265358979323846264338327950288") * u) ** 2
    total, term = Fraction(0), Fraction(1)
    for k in range(1, terms):
        total += term
        term = -term * square / ((2 * k - 1) * 2 * k)
    return (1 - total) / 2


@given(st.fractions(0, 1, max_denominator=1000))
def test_cosine_against_its_series(u):
    assert cosine(float(u)) == pytest.approx(float(cosine_oracle(u)), abs=1e-14)


@given(st.floats(0, 1))
def test_cosine_is_symmetric(u):
    assert cosine(u) + cosine(1 - u) == pytest.approx(1)


@given(tables(), st.floats(0, 1))
def test_stepwise_against_a_walk_down_the_table(shape, u):
    reached = 0.0
    for point, share in shape.levels.items():
        if point <= u:
            reached = share
    assert shape(u) == reached


def test_stepwise_does_not_change_with_its_argument():
    levels = {0.5: 1.0}
    shape = Stepwise(levels=levels)
    levels[0.2] = 0.9
    assert shape(0.3) == 0.0


@given(schedules(tables(), rise=0.01), st.integers(64, 3000), st.integers(1, 200))
def test_plan_of_stepwise_updates_once_per_level_at_its_own_step(schedule, total_steps, updates):
    initial, final = schedule.initial, schedule.final
    begin, end = (round(Fraction(x) * total_steps) for x in (schedule.begin, schedule.end))
    expected, reached = {}, 0.0
    for point, share in {0.0: 0.0, **schedule.shape.levels}.items():
        sparsity = final if share == 1.0 else initial + (final - initial) * share
        if sparsity > reached:
            expected[max(1, begin + round((end - begin) * Fraction(point)))] = sparsity
            reached = sparsity
    plan = update_plan(schedule, total_steps=total_steps, updates=updates)
    assert list(plan) == list(expected)
    assert list(plan.values()) == pytest.approx(list(expected.values()), abs=1e-12)


def test_plan_takes_any_shape_with_breakpoints_and_ends_at_final():
    class Half:
        breakpoints = (0.5,)

        def __call__(self, u):
            return 0.5 if u >= 0.5 else 0.0

    schedule = Schedule(final=0.8, initial=0.4, shape=Half())
    plan = update_plan(schedule, total_steps=10, updates=3)
    assert plan == pytest.approx({1: 0.4, 5: 0.6, 10: 0.8})
    assert plan[10] == 0.8


def test_rounding_neither_lifts_it_above_final_nor_leaves_it_below():
    assert 0.33 + (0.87 - 0.33) > 0.87
    assert Schedule(final=0.87, initial=0.33, shape=one_shot)(0.5) == 0.87
    assert 0.05 + (0.21 - 0.05) < 0.21
    assert Schedule(final=0.21, initial=0.05)(1.0) == 0.21


@given(schedules(st.just(cubic), rise=0.01), st.integers(1, 3000), st.integers(1, 200))
def test_plan_against_exact_arithmetic(schedule, total_steps, updates):
    first, last = (round(Fraction(x) * total_steps) for x in (schedule.begin, schedule.end))
    if first == last:
        with pytest.raises(ValueError, match="no step of this run"):
            update_plan(schedule, total_steps=total_steps, updates=updates)
        return
    plan = update_plan(schedule, total_steps=total_steps, updates=updates)
    expected = plan_oracle(schedule, total_steps, updates)
    assert list(plan) == list(expected)
    assert list(plan.values()) == pytest.approx([float(s) for s in expected.values()], abs=1e-12)


@given(schedules(), st.integers(64, 3000), st.integers(1, 200))
def test_plan_rises_within_the_run_to_exactly_final(schedule, total_steps, updates):
    plan = update_plan(schedule, total_steps=total_steps, updates=updates)
    steps, sparsities = list(plan), list(plan.values())
    assert steps == sorted(steps)
    assert sparsities == sorted(set(sparsities))
    if schedule.final > 0:
        assert steps[0] >= 1
        assert steps[-1] <= total_steps
        assert sparsities[-1] == schedule.final
        levels = getattr(schedule.shape, "levels", range(updates))
        assert len(plan) <= len(levels) + 1


@pytest.mark.parametrize(
    ("schedule", "total_steps", "updates", "plan"),
    [
        pytest.param(Schedule(final=0.9), 1, 100, {1: 0.9}, id="one step"),
        pytest.param(Schedule(final=0.8, shape=linear), 2, 2, {1: 0.4, 2: 0.8}, id="linear"),
        pytest.param(Schedule(final=0.9, shape=one_shot), 10, 4, {1: 0.9}, id="one shot"),
        pytest.param(
            Schedule(final=0.9, shape=one_shot, begin=0.5), 10, 4, {5: 0.9}, id="one shot, late"
        ),
        pytest.param(
            Schedule(final=0.9, initial=0.7, shape=linear, begin=0.2, end=0.6),
            10,
            2,
            {2: 0.7, 4: 0.8, 6: 0.9},
            id="a jump, then recovery",
        ),
        pytest.param(Schedule(final=0.0), 10, 4, {}, id="dense"),
        pytest.param(
            Schedule(final=0.9, shape=cosine),
            4,
            4,
            {1: 0.1318, 2: 0.45, 3: 0.7682, 4: 0.9},
            id="cosine",
        ),
        pytest.param(
            Schedule(final=0.8, shape=Stepwise(levels={0.2: 0.5, 0.6: 1.0})),
            10,
            3,
            {2: 0.4, 6: 0.8},
            id="stepwise, between updates",
        ),
        pytest.param(
            Schedule(final=0.8, shape=Stepwise(levels={0.0: 0.25, 0.29: 0.5, 1.0: 1.0})),
            100,
            7,
            {1: 0.2, 29: 0.4, 100: 0.8},
            id="stepwise, from the start",
        ),
        pytest.param(
            Schedule(final=0.8, shape=Stepwise(levels={0.5: 0.5, 0.51: 0.75, 0.52: 1.0})),
            10,
            100,
            {5: 0.8},
            id="stepwise, levels on one step",
        ),
        pytest.param(
            Schedule(
                final=0.9, initial=0.7, begin=0.1, end=0.6, shape=Stepwise(levels={0.5: 0.5, 1: 1})
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
            Schedule(final=0.9, begin=0.09, end=0.34, shape=linear),
            100,
            1,
            {34: 0.9},
            id="0.09 + (0.34 - 0.09) < 0.34",
        ),
    ],
)
def test_plans(schedule, total_steps, updates, plan):
    made = update_plan(schedule, total_steps=total_steps, updates=updates)
    assert list(made) == list(plan)
    assert list(made.values()) == pytest.approx(list(plan.values()), rel=1e-4)
    assert max(made.values(), default=0.0) == schedule.final


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"final": 95}, r"final=95: expected a fraction in \[0, 1\); did you mean 0.95\?"),
        ({"final": 1.0}, r"final=1.0: expected a fraction in \[0, 1\)$"),
        ({"final": -0.1}, r"final=-0.1: expected a fraction"),
        ({"final": float("nan")}, r"final=nan: expected a fraction"),
        ({"final": 0.9, "initial": 50}, r"initial=50: .* did you mean 0.5\?"),
        ({"final": 0.9, "initial": float("nan")}, r"initial=nan"),
        ({"final": 0.9, "initial": 0.91}, r"initial=0.91 is above final=0.9"),
        ({"final": 0.9, "begin": 0.5, "end": 0.5}, r"begin=0.5 is not before end=0.5"),
        ({"final": 0.9, "begin": 0.6, "end": 0.5}, r"begin=0.6 .* sparsity/shape=one_shot"),
        ({"final": 0.9, "end": 1.5}, r"end=1.5: expected a fraction in \[0, 1\]$"),
        ({"final": 0.9, "begin": float("nan")}, r"begin=nan"),
        ({"final": 0.9, "end": float("nan")}, r"end=nan"),
    ],
)
def test_schedule_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)


@given(schedules())
def test_recovery_stays_at_final(schedule):
    later = (schedule.end + k / 8 * (1 - schedule.end) for k in range(9))
    assert {schedule(progress) for progress in later} == {schedule.final}


def test_a_jump_is_made_at_begin_not_before():
    schedule = Schedule(final=0.9, initial=0.7, begin=0.25, end=0.75)
    assert schedule(0.2499) == 0.0
    assert schedule(0.25) == 0.7


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({}, r"levels=\{\}: expected a table whose last share is 1.0"),
        ({0.5: 0.8}, r"levels=\{0.5: 0.8\}: expected a table whose last share is 1.0"),
        ({0.6: 0.5, 0.2: 1.0}, r"points \[0.6, 0.2\] do not rise; sort them"),
        ({0.2: 0.8, 0.6: 0.5, 1.0: 1.0}, r"shares \[0.8, 0.5, 1.0\] fall"),
        ({50: 1.0}, r"levels: point=50: expected a fraction in \[0, 1\]; did you mean 0.5\?"),
        ({-0.1: 1.0}, r"levels: point=-0.1"),
        ({float("nan"): 1.0}, r"levels: point=nan"),
        ({0.5: 50, 1.0: 1.0}, r"levels\[0.5\]=50: .* did you mean 0.5\?"),
        ({0.5: float("nan"), 1.0: 1.0}, r"levels\[0.5\]=nan"),
    ],
)
def test_stepwise_refuses(levels, message):
    with pytest.raises(ValueError, match=message):
        Stepwise(levels=levels)


@pytest.mark.parametrize(
    ("total_steps", "updates", "message"),
    [
        (100, 0, "updates=0"),
        (0, 10, "total_steps=0"),
        (10, 10, r"begin=0.5, end=0.52: no step of this run of 10"),
    ],
)
def test_plan_refuses(total_steps, updates, message):
    schedule = Schedule(final=0.9, begin=0.5, end=0.52)
    with pytest.raises(ValueError, match=message):
        update_plan(schedule, total_steps=total_steps, updates=updates)


@st.composite
def rests(draw):
    """A schedule with milestones, and a run long enough for them."""
    count = draw(st.integers(1, 4))
    shape = draw(SHAPES)
    final = draw(st.floats(0.5, 0.99))
    within = draw(
        st.lists(
            st.floats(0.02, 0.98), min_size=count, max_size=count, unique_by=lambda x: round(x, 2)
        )
    )
    begin = draw(st.floats(0.0, 0.2))
    end = draw(st.floats(0.6, 1.0))
    hold = draw(st.floats(0.1, 0.9)) * (end - begin) / count
    schedule = Schedule(
        final=final,
        begin=begin,
        end=end,
        shape=shape,
        milestones=sorted(final * x for x in within),
        hold=hold,
    )
    return schedule, draw(st.integers(200, 3000))


@given(rests(), st.integers(1, 300))
def test_a_ramp_with_milestones_rests_at_each_and_still_ends_at_end(given_, updates):
    schedule, total_steps = given_
    plan = update_plan(schedule, total_steps=total_steps, updates=updates)
    assert list(plan) == sorted(plan)
    assert list(plan.values()) == sorted(plan.values())
    assert max(plan) <= round(schedule.end * total_steps)
    assert list(plan.values())[-1] == schedule.final
    steps = list(plan)
    for milestone in schedule.milestones:
        place = list(plan.values()).index(milestone)
        hold = steps[place + 1] - max(steps[place], 1)
        assert hold >= round(schedule.hold * total_steps) - 1  # the first step is 1, not 0


@given(rests())
def test_sparsity_over_progress_agrees_with_the_plan(given_):
    schedule, total_steps = given_
    plan = update_plan(schedule, total_steps=total_steps)
    hold = round(schedule.hold * total_steps)
    for step, sparsity in plan.items():
        if sparsity in schedule.milestones and hold > 8:  # steps are rounded
            assert schedule((step + hold / 2) / total_steps) == sparsity
    sparsities = [schedule(k / 100) for k in range(101)]
    assert sparsities == sorted(sparsities)
    assert sparsities[-1] == schedule.final


def test_without_milestones_hold_is_of_no_account():
    plain, held = Schedule(final=0.9), Schedule(final=0.9, hold=0.7)
    assert update_plan(plain, total_steps=977) == update_plan(held, total_steps=977)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"milestones": [0.5, 0.5]}, r"milestones=\[0.5, 0.5\]: expected sparsities that rise"),
        ({"milestones": 0.5}, r"milestones=0.5: expected a list, \[0.5\]"),
        ({"milestones": [0.9]}, "rise between initial=0.0 and final=0.9"),
        ({"milestones": [0.5], "initial": 0.7}, "rise between initial=0.7"),
        ({"milestones": [50]}, r"milestones: sparsity=50: .* did you mean 0.5\?"),
        ({"milestones": [0.5], "hold": 30}, r"hold=30: .* did you mean 0.3\?"),
        ({"milestones": [0.2, 0.5], "hold": 0.5}, "hold=0.5: 2 milestones held for so long"),
    ],
)
def test_milestones_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"final": 0.9, **arguments})


def test_milestones_that_do_not_fit_the_run_are_refused():
    schedule = Schedule(final=0.9, milestones=[0.5], hold=0.1)
    with pytest.raises(ValueError, match=r"hold=0\.1: of this run's 10 steps the ramp has 10"):
        update_plan(schedule, total_steps=10)
