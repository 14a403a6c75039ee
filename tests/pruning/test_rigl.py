"""RigL: the exchange against a reimplementation, and in a Pruner."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning import Pruner, RigL, Schedule, linear, periodic_updates, ramp_updates


@given(st.integers(2, 60), st.floats(0.05, 0.95), st.floats(0, 1), st.integers(0, 1000))
def test_drop_and_grow_against_reimplementation(size, fraction, progress, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(size) < 0.5
    scores, gradient = rng.random(size), rng.normal(size=size)
    kept = np.flatnonzero(mask)
    share = fraction / 2 * (1 + math.cos(math.pi * progress))
    moved = min(round(share * len(kept)), size - len(kept))
    stay = set(kept[np.argsort(scores[kept])][moved:])
    others = [i for i in range(size) if i not in stay]
    come = sorted(others, key=lambda i: -abs(gradient[i]))[:moved]
    expected = sorted(stay | set(come))
    found = RigL(fraction=fraction).drop_and_grow(
        torch.from_numpy(mask), torch.from_numpy(scores), torch.from_numpy(gradient), progress
    )
    assert found.nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("fraction", [0.0, 1.0, 30])
def test_rigl_fraction_out_of_range_raises(fraction):
    with pytest.raises(ConfigError, match=rf"fraction={fraction}: expected a fraction in \(0, 1\)"):
        RigL(fraction=fraction)


def test_rigl_progress_rises_from_ramp_begin_to_end(monkeypatch):
    seen = []
    drop_and_grow = RigL.drop_and_grow

    def noted(self, mask, scores, gradient, progress):
        seen.append(progress)
        return drop_and_grow(self, mask, scores, gradient, progress)

    monkeypatch.setattr(RigL, "drop_and_grow", noted)
    layer = nn.Linear(8, 4, bias=False)
    schedule = Schedule(final=0.75, initial=0.75, begin=0.5, ramp=linear)
    options = {"updates": 4, "update_schedule": periodic_updates, "regrow": RigL()}
    pruner = Pruner({"weight": layer.weight}, schedule, total_steps=16, **options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    pruner.attach(optimizer)
    for _ in range(16):
        layer(torch.ones(8)).sum().backward()
        optimizer.step()
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_rigl_in_pruner_weights_return_from_zero_without_momentum():
    torch.manual_seed(0)
    layer = nn.Linear(8, 4, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    pruner = Pruner(
        {"weight": layer.weight},
        Schedule(final=0.75, initial=0.75, ramp=linear, end=0.75),
        total_steps=20,
        updates=5,
        update_schedule=periodic_updates,
        regrow=RigL(),
    )
    pruner.attach(optimizer)
    inputs, wanted = torch.randn(16, 8), torch.randn(16, 4)
    changes = {}
    for step in range(1, 21):
        before = pruner.masks["weight"].clone()
        (layer(inputs) - wanted).square().sum().backward()
        gradient = layer.weight.grad.abs()
        optimizer.step()
        mask, moments = pruner.masks["weight"], optimizer.state[layer.weight]["exp_avg"]
        assert int((~mask).sum()) == 24
        assert not layer.weight[~mask].any()
        come = mask & ~before
        changes[step] = int(come.sum())
        if changes[step]:
            assert not layer.weight[come].any()
            assert not moments[come].any()
            assert gradient[come].min() >= gradient[~mask & ~before].max()
        optimizer.zero_grad()
    assert {step for step in changes if changes[step]} <= {1, 3, 6, 9, 12}
    assert sum(changes.values()) > 0
    assert all(changes[step] == 0 for step in range(15, 21))


@given(st.floats(0, 0.99), st.floats(0, 1), st.integers(1, 30), st.integers(5, 200))
def test_periodic_updates_include_ramp_updates(final, part, updates, steps):
    schedule = Schedule(final=final, initial=part * final)
    plan = periodic_updates(schedule, total_steps=steps, updates=updates)
    assert list(plan) == sorted(plan)
    assert list(plan.values()) == sorted(plan.values())
    rising = ramp_updates(schedule, total_steps=steps, updates=updates)
    assert rising.items() <= plan.items()
    assert max(plan) == steps
    assert plan[steps] == final
    assert len(plan) <= updates + 1
