"""The learning rate over a fit, against its formulas; what gets weight decay; what is refused."""

from __future__ import annotations

import math

import pytest
from torch import nn

from kd_prune.hf import AdamWWithSchedule
from kd_prune.hf.optimizer import SCHEDULES

STEPS, RISING = 40, 8
AFTER = {  # share of the peak, by the share `x` of the steps after the warm-up
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "constant": lambda x: 1.0,
    "constant_with_warmup": lambda x: 1.0,
}


def rates(recipe: AdamWWithSchedule) -> list[float]:
    """The rate of every step, and the one that a step after the last would have."""
    optimizer, scheduler = recipe(nn.Linear(2, 2), STEPS)
    found = []
    for _ in range(STEPS + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", AFTER)
@pytest.mark.parametrize("rising", [0, RISING])
def test_learning_rate_rises_linearly_then_follows_its_formula(schedule, rising):
    found = rates(AdamWWithSchedule(lr=0.5, schedule=schedule, warmup=rising / STEPS))
    rise = [0.5 * step / RISING for step in range(rising)]
    after = STEPS - rising
    rest = [0.5 * AFTER[schedule](step / after) for step in range(after + 1)]
    assert found == pytest.approx([*rise, *rest], abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_and_never_exceeds_the_peak(schedule):
    found = rates(AdamWWithSchedule(lr=0.5, schedule=schedule, warmup=RISING / STEPS))
    assert found[: RISING + 1] == pytest.approx([0.5 * s / RISING for s in range(RISING + 1)])
    assert max(found) == found[RISING]


def test_weight_decay_is_for_matrices_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    model[2].requires_grad_(False)
    optimizer, _ = AdamWWithSchedule(weight_decay=0.1)(model, STEPS)
    decayed = {
        p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decayed == {
        model[0].weight: 0.1,
        model[0].bias: 0.0,
        model[1].weight: 0.0,
        model[1].bias: 0.0,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("weight_decay", -0.1),
        ("betas", (0.9,)),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("schedule", "reduce_lr_on_plateau"),
        ("warmup", 1.0),
    ],
)
def test_optimizer_value_out_of_range_raises(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.*: expected "):
        AdamWWithSchedule(**{name: value})
