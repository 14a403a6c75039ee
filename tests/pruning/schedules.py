"""Random ramps and schedules."""

from fractions import Fraction

from hypothesis import strategies as st

from kd_prune.pruning.ramps import Stepwise, cosine, cubic, linear, one_shot
from kd_prune.pruning.schedule import Schedule


@st.composite
def tables(draw):
    """Levels at multiples of 1/64, the last fraction 1."""
    points = sorted(draw(st.sets(st.integers(0, 64), min_size=1, max_size=6)))
    size = len(points) - 1
    shares = [*sorted(draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))), 1.0]
    return Stepwise(levels={point / 64: share for point, share in zip(points, shares, strict=True)})


RAMPS = st.one_of(st.sampled_from([cubic, linear, cosine, one_shot]), tables())


@st.composite
def schedules(draw, ramps=RAMPS, rise=0.0):
    """Any legal schedule; the ramp's ends are multiples of 1/64, so that products are exact."""
    initial = draw(st.floats(0, 0.9))
    final = draw(st.floats(initial + rise, 0.999))
    begin = draw(st.integers(0, 63))
    end = draw(st.integers(begin + 1, 64))
    return Schedule(final=final, initial=initial, begin=begin / 64, end=end / 64, ramp=draw(ramps))


def cubic_oracle(schedule, progress):
    """Zhu & Gupta's eq. 1 in exact arithmetic."""
    initial, final = Fraction(schedule.initial), Fraction(schedule.final)
    begin, end = Fraction(schedule.begin), Fraction(schedule.end)
    if progress < begin:
        return Fraction(0)
    u = min((progress - begin) / (end - begin), Fraction(1))
    return final + (initial - final) * (1 - u) ** 3
