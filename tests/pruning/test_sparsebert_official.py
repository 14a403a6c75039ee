import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning import sparsebert_official
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.ramps import linear
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.update_schedule import checked_updates


class Prune:
    """The reference's class Prune in numpy.

    Ours departs from it where its frequency is 0 or it would keep more weights than are left.
    """

    def __init__(self, weights, *, first, ramp, initial, final, updates):
        self.weights = weights
        self.masks = {name: np.ones(w.shape, bool) for name, w in weights.items()}
        self.first, self.ramp = first, ramp
        self.initial, self.final = initial, final
        self.frequency = round(ramp / updates)

    def sparsity_at(self, t):
        """Sparsity of the update at step t, None if there is none."""
        p, f = self.first, self.frequency
        if not (p < t < p + self.ramp and (t - p) % f == 0):
            return None
        left = 1.0 - ((t - p) // f) / (self.ramp // f)
        return self.final + (self.initial - self.final) * left**3

    def step(self, t):
        sparsity = self.sparsity_at(t)
        for name, weight in self.weights.items():
            if sparsity is not None:
                masked = np.abs(weight * self.masks[name])
                keep = int(weight.size * (1.0 - sparsity))
                threshold = np.sort(masked, axis=None)[::-1][keep - 1]
                self.masks[name] = masked >= threshold
            weight *= self.masks[name]


STEPS = 200
SHAPES = {"square": (24, 24), "wide": (6, 50), "tall": (41, 3), "conv": (4, 5, 3), "tied": (16, 20)}


def noise(rng, name, scale):
    drawn = (scale * rng.standard_normal(SHAPES[name])).astype(np.float32)
    # Whole steps around half-odd weights: many ties, and no kept weight is ever zero.
    return np.round(2 * drawn) if name == "tied" else drawn


@pytest.mark.parametrize(
    ("begin", "end", "initial", "final", "updates"),
    [
        (0.0, 1.0, 0.0, 0.95, 100),
        (0.0, 1.0, 0.0, 0.95, 30),
        (0.1, 0.9, 0.3, 0.9, 100),
        (0.25, 0.75, 0.0, 0.5, 7),
    ],
)
def test_sparsebert_official_200_steps_equal_reference(begin, end, initial, final, updates):
    rng = np.random.default_rng(0)
    weights = {name: noise(rng, name, 1.0) for name in SHAPES}
    weights["tied"] += np.float32(0.5)
    ours = {name: nn.Parameter(torch.from_numpy(w.copy())) for name, w in weights.items()}
    reference = Prune(
        weights,
        first=round(begin * STEPS),
        ramp=round((end - begin) * STEPS),
        initial=initial,
        final=final,
        updates=updates,
    )
    pruner = Pruner(
        ours,
        Schedule(final=final, initial=initial, begin=begin, end=end),
        total_steps=STEPS,
        updates=updates,
        update_schedule=sparsebert_official.update_schedule,
        allocation=sparsebert_official.uniform,
        granularity=sparsebert_official.at_least,
    )
    updated = 0
    for t in range(1, STEPS + 1):
        for name in SHAPES:
            change = noise(rng, name, 0.3)
            weights[name] += change
            with torch.no_grad():
                ours[name] += torch.from_numpy(change)
        reference.step(t)
        updated += pruner.update(t)
        pruner.project()
        for name in SHAPES:
            np.testing.assert_array_equal(pruner.masks[name].numpy(), reference.masks[name])
            # Adding 0 turns the reference's -0 (its weight times 0) into the 0 of ours.
            expected = (reference.weights[name] + np.float32(0)).view(np.int32)
            np.testing.assert_array_equal(ours[name].detach().numpy().view(np.int32), expected)
    assert updated == sum(reference.sparsity_at(t) is not None for t in range(STEPS + 1)) > 5
    assert (
        0
        < sum(mask.sum() for mask in reference.masks.values())
        < sum(mask.size for mask in reference.masks.values())
    )


@given(st.integers(0, 63), st.integers(1, 64), st.integers(1, 2000), st.integers(1, 150))
def test_update_schedule_against_every_step_of_reference(begin, length, total_steps, updates):
    end = min(64, begin + length)
    first, last = round(begin / 64 * total_steps), round(end / 64 * total_steps)
    schedule = Schedule(final=0.95, initial=0.1, begin=begin / 64, end=end / 64)
    if first == last:
        with pytest.raises(ValueError, match="no step of this run"):
            sparsebert_official.update_schedule(schedule, total_steps=total_steps, updates=updates)
        return
    reference = Prune({}, first=first, ramp=last - first, initial=0.1, final=0.95, updates=updates)
    reference.frequency = max(1, reference.frequency)
    expected = {t: reference.sparsity_at(t) for t in range(1, total_steps + 1)}
    expected = {t: s for t, s in expected.items() if s is not None}
    plan = sparsebert_official.update_schedule(schedule, total_steps=total_steps, updates=updates)
    assert plan == (expected or {last: 0.95})  # a run that prunes nothing is nobody's wish


def test_update_schedule_of_the_readme_run():
    plan = sparsebert_official.update_schedule(Schedule(final=0.95), total_steps=84_612)
    assert len(plan) == 100
    assert min(plan) == 846
    assert max(plan) == 84_600
    assert plan[84_600] == 0.95


def test_update_schedule_other_ramp_raises():
    with pytest.raises(ValueError, match="ramp=cubic without"):
        sparsebert_official.update_schedule(Schedule(final=0.9, ramp=linear), total_steps=100)


@pytest.mark.parametrize(("total_steps", "updates"), [(3, 100), (4, 100), (1000, 2), (1000, 4)])
def test_short_plan_that_misses_the_target_is_refused(total_steps, updates):
    """The reference's last update comes before the ramp's last step."""
    made_by = sparsebert_official.update_schedule
    plan = made_by(Schedule(final=0.95), total_steps=total_steps, updates=updates)
    says = r"^update_schedule=kd_prune\.\S+official\.update_schedule: its last update .*; take more"
    with pytest.raises(ConfigError, match=says):
        checked_updates(plan, made_by=made_by, final=0.95, total_steps=total_steps)


def test_at_least_keeps_all_ties():
    kept = torch.ones(2, 3, dtype=torch.bool)
    scores = torch.tensor([[1.0, 1.0, 2.0], [2.0, 2.0, 3.0]])
    mask = sparsebert_official.at_least(scores, 4, kept)
    assert mask.tolist() == [[False, False, True], [True, True, True]]
    assert sparsebert_official.at_least(scores, 6, kept).tolist() == [[False] * 3] * 2


def test_at_least_fewer_weights_than_kept_stay():
    kept = torch.tensor([True, False, False])
    mask = sparsebert_official.at_least(torch.ones(3), 1, kept)
    assert torch.equal(mask, kept)
