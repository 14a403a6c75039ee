"""Saving and loading a Pruner."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from kd_prune.pruning.allocation import Global
from kd_prune.pruning.schedule import Schedule

from .toy import OPTIMIZERS, PLAN, STEPS, bits, make_model, make_pruner, run, train_step


@pytest.mark.parametrize("allocation", [None, Global(ceiling=0.96)])
def test_pruner_resumed_in_mid_ramp_equals_uninterrupted(allocation):
    options = {"allocation": allocation} if allocation else {}
    model = make_model()
    pruner = make_pruner(model, **options)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    run(model, pruner, optimizer, range(1, 9))
    assert 0 < pruner.target < 0.9
    parts = {"model": model, "adam": optimizer, "pruner": pruner}
    file = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    run(model, pruner, optimizer, range(9, STEPS + 1))

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = make_model()
    resumed_pruner = make_pruner(resumed, **options)
    resumed_optimizer = OPTIMIZERS["adamw"](resumed.parameters())
    resumed.load_state_dict(state["model"])
    resumed_optimizer.load_state_dict(state["adam"])
    resumed_pruner.load_state_dict(state["pruner"])
    assert resumed_pruner.target == PLAN[8]
    run(resumed, resumed_pruner, resumed_optimizer, range(9, STEPS + 1))
    assert resumed_pruner.target == pruner.target
    for name, weight in model.state_dict().items():
        assert torch.equal(bits(weight), bits(resumed.state_dict()[name]))
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, resumed_pruner.masks[name])


def test_load_state_dict_longer_run_keeps_its_ramp():
    model = make_model()
    state = make_pruner(model).state_dict()
    longer = make_pruner(model, total_steps=10 * STEPS)
    assert longer.update_schedule != PLAN
    longer.load_state_dict(state)
    assert longer.update_schedule == PLAN


def test_load_state_dict_copies_masks():
    model = make_model()
    pruner, other = make_pruner(model), make_pruner(model)
    other.load_state_dict(pruner.state_dict())
    pruner.update(max(PLAN))
    assert all(mask.all() for mask in other.masks.values())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 4)),
            r"2.weight has shape \(4, 11\)",
        ),
        (nn.Sequential(nn.Linear(7, 11)), r"2.weight has shape None there and \(3, 11\) here"),
        (
            nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3), nn.Linear(3, 3)),
            r"3.weight has shape \(3, 3\) there and None here",
        ),
    ],
)
def test_load_state_dict_other_model_raises(model, message):
    with pytest.raises(ValueError, match=f"of another model or scope: {message}"):
        make_pruner(make_model()).load_state_dict(make_pruner(model).state_dict())


@pytest.mark.parametrize("saved_at", [3, 11, 17])
def test_attach_resumed_equals_uninterrupted(saved_at):
    model = make_model()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    make_pruner(model, regrow=True).attach(optimizer)
    for step in range(1, STEPS + 1):
        train_step(model, optimizer, step)

    first = make_model()
    optimizer = OPTIMIZERS["adamw"](first.parameters())
    pruner = make_pruner(first, regrow=True)
    pruner.attach(optimizer)
    for step in range(1, saved_at + 1):
        train_step(first, optimizer, step)
    buffer = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict(), pruner.state_dict()], buffer)
    buffer.seek(0)
    weights, moments, state = torch.load(buffer, weights_only=True)

    second = make_model()
    second.load_state_dict(weights)
    optimizer = OPTIMIZERS["adamw"](second.parameters())
    optimizer.load_state_dict(moments)
    pruner = make_pruner(second, regrow=True)
    pruner.load_state_dict(state)
    pruner.attach(optimizer)
    for step in range(saved_at + 1, STEPS + 1):
        train_step(second, optimizer, step)
    for ours, theirs in zip(model.parameters(), second.parameters(), strict=True):
        assert torch.equal(bits(ours), bits(theirs))


def test_load_state_dict_regrowth_mismatch_raises():
    state = make_pruner(make_model(), regrow=True).state_dict()
    with pytest.raises(ValueError, match=r"saved with 'dormant_weights' and is loaded without it"):
        make_pruner(make_model()).load_state_dict(state)


@pytest.mark.parametrize(
    "schedule", [Schedule(final=0.9, end=0.5), Schedule(final=0.8), Schedule(final=0.9, begin=0.2)]
)
def test_load_state_dict_other_ramp_raises_and_changes_nothing(schedule):
    saved = make_pruner(make_model(), Schedule(final=0.9))
    saved.update(STEPS // 2)
    pruner = make_pruner(make_model(), schedule)
    before = copy.deepcopy(pruner.state_dict())
    with pytest.raises(ValueError, match=r"another ramp: for step \d+ of 20 it plans .*; resume"):
        pruner.load_state_dict(saved.state_dict())
    after = pruner.state_dict()
    assert all(torch.equal(mask, before["masks"][name]) for name, mask in after["masks"].items())
    assert (after["update_schedule"], after["total_steps"]) == (
        before["update_schedule"],
        before["total_steps"],
    )
    frozen = make_pruner(make_model(), None)
    frozen.load_state_dict(saved.state_dict())
    assert not frozen.update(STEPS)


def test_state_dict_numpy_numbers_are_saved_as_plain_ones():
    levels = np.linspace(0.5, 0.9, 3)
    schedule = Schedule(
        final=levels[2], initial=levels[0], milestones=levels[1:2], end=np.float32(0.5)
    )
    pruner = make_pruner(
        make_model(),
        schedule,
        allocation=lambda masks, score, s: {n: np.int64(s * m.numel()) for n, m in masks.items()},
    )
    pruner.update(STEPS)
    buffer = io.BytesIO()
    torch.save(pruner.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["target"] == 0.9
