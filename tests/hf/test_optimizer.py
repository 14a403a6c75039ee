"""The learning rate over a fit, against its formulas; what gets weight decay; what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import AdamW

from kd_prune.errors import ConfigError
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


def test_steps_are_those_of_adamw_and_clipped_in_mixed_precision():
    """On a CPU the step is fused; Lightning would refuse to clip an ordinary fused optimizer."""
    recipe = AdamWWithSchedule(lr=0.1, weight_decay=0.1, schedule="constant")
    models = [nn.Linear(5, 3, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours, _ = recipe(models[0], STEPS)
    reference = AdamW(models[1].parameters(), lr=0.1, weight_decay=0.1, foreach=False)
    assert ours.param_groups[0]["fused"]
    clip = MixedPrecision("bf16-mixed", "cpu").clip_gradients
    for step in range(5):
        gradient = torch.randn(3, 5, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip(models, (ours, reference), strict=True):
            model.weight.grad = gradient.clone()
            clip(optimizer, clip_val=0.5)
            assert model.weight.grad.norm() == pytest.approx(0.5, rel=1e-4)
            optimizer.step()
    torch.testing.assert_close(models[0].weight, models[1].weight)


def test_a_slice_of_another_tensor_changes_nothing_of_it():
    whole = torch.ones(2, 4)
    model = nn.Linear(2, 2, bias=False)
    model.weight = nn.Parameter(whole[:, :2])
    optimizer, _ = AdamWWithSchedule(lr=0.1, weight_decay=0.0)(model, STEPS)
    model.weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert whole.tolist() == [[pytest.approx(0.9), pytest.approx(0.9), 1.0, 1.0]] * 2


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


def test_rewound_rate_falls_from_its_peak_to_the_floor_in_every_part():
    """Independent: linear interpolation between the ends of every part."""
    recipe = AdamWWithSchedule(lr=0.5, warmup=0.1, rewinds=[0.5, 0.75], floor=0.25)
    points = {0: 0.0, 4: 0.5, 20 - 1e-9: 0.125, 20: 0.5, 30 - 1e-9: 0.125, 30: 0.5, 40: 0.125}
    expected = np.interp(range(STEPS + 1), list(points), list(points.values()))
    assert rates(recipe) == pytest.approx(list(expected), abs=1e-6)


def test_rewound_cosine_is_a_cosine_in_every_part():
    found = rates(AdamWWithSchedule(lr=0.5, schedule="cosine", rewinds=[0.25]))
    expected = [0.5 * AFTER["cosine"](step / 10) for step in range(10)]
    expected += [0.5 * AFTER["cosine"](step / 30) for step in range(31)]
    assert found == pytest.approx(expected, abs=1e-12)


def moved(rates, model, objective=None):
    """Names of the parameters that a step of a gradient of 1 changes, and by how much."""
    trained = nn.ModuleDict({"student": model} | ({"objective": objective} if objective else {}))
    optimizer, _ = AdamWWithSchedule(lr=0.1, weight_decay=0.5, rates=rates)(trained, STEPS)
    before = {name: weight.detach().clone() for name, weight in trained.named_parameters()}
    for weight in trained.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return {
        name: float(
            (weight.detach() - before[name] * (1 - 0.5 * 0.1 * (weight.ndim > 1))).abs().mean()
        )
        for name, weight in trained.named_parameters()
        if not torch.equal(weight, before[name])
    }


def test_rates_are_factors_by_the_first_pattern_that_matches():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.LayerNorm(2)})
    found = moved({"b.bias": 0.5, "a.*": 0.0, "b.*": 1.0}, model)
    assert found == pytest.approx(
        {
            "student.b.weight": 0.1,
            "student.b.bias": 0.05,
            "student.c.weight": 0.1,
            "student.c.bias": 0.1,
        },
        rel=1e-4,
    )


def test_rates_are_not_those_of_the_objective():
    found = moved({"*": 0.0}, nn.Linear(2, 2), nn.Linear(2, 2))
    assert found.keys() == {"objective.weight", "objective.bias"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rewinds": [0.5, 0.4]}, "rewinds=[0.5, 0.4]: expected ascending fractions"),
        ({"rewinds": [0.1], "warmup": 0.2}, "rewinds=[0.1]: expected ascending fractions"),
        ({"rewinds": [0.5, 0.501]}, "rewinds=[0.5, 0.501]: two of them lie on one step"),
        ({"floor": 1.5}, "floor=1.5: expected a share of lr"),
        ({"rates": {"*": -1.0}}, "rates.*=-1.0: expected a finite number"),
        ({"rates": {"*": 1.0, "weight": 0.0}}, "rates=weight: the pattern matches no parameter"),
    ],
)
def test_impossible_courses_and_rates_are_refused(settings, says):
    with pytest.raises(ConfigError) as error:
        AdamWWithSchedule(**settings)(nn.Linear(2, 2), STEPS)
    assert str(error.value).startswith(says)


def test_a_fit_of_one_step_has_no_rewinds():
    """As with debug=fdr."""
    optimizer, _ = AdamWWithSchedule(rewinds=[0.5, 0.8])(nn.Linear(2, 2), 1)
    assert optimizer.param_groups[0]["lr"] == AdamWWithSchedule().lr
