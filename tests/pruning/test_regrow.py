"""Regrowth, gradients and criteria in a Pruner."""

import pytest
import torch
from torch import nn

from kd_prune.errors import ConfigError, ConfigTypeError
from kd_prune.pruning.criteria import PLATON, Movement, SoftMovement, Taylor, magnitude
from kd_prune.pruning.criteria.fisher import BlockFisher, DiagonalFisher
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.selection import count_pruned

from .toy import PLAN, STEPS, make_model, make_pruner, weights_of


def test_update_regrowing_selection_is_intersected():
    model = make_model()
    pruner = make_pruner(model)
    pruner.update(min(PLAN))
    pruned = {name: ~mask for name, mask in pruner.masks.items()}
    pruner.granularity = lambda scores, count, kept: torch.ones_like(kept)
    pruner.update(max(PLAN))
    assert all(not pruner.masks[name][gone].any() for name, gone in pruned.items())


def test_regrow_weight_returns_with_its_value_and_without_momentum():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.0, weight_decay=0.0)
    plan = {1: 0.25, 2: 0.25 + 1e-9, 3: 0.5}
    pruner = Pruner(
        {"weight": layer.weight},
        Schedule(final=0.5),
        total_steps=3,
        update_schedule=lambda *_, **__: plan,
        regrow=True,
    )
    pruner.attach(optimizer)

    def step():
        layer.weight.grad = torch.ones(1, 4)
        optimizer.step()
        return layer.weight.flatten().tolist()

    assert step() == [0.0, 2.0, 3.0, 4.0]
    with torch.no_grad():
        layer.weight[0, 1:3] = torch.tensor([0.5, 0.25])
    assert step() == [1.0, 0.5, 0.0, 4.0]
    moments = optimizer.state[layer.weight]["exp_avg"].flatten()
    assert moments[0] == moments[2] == 0.0
    assert moments[1] > 0.0
    assert moments[3] > 0.0
    assert step() == [1.0, 0.0, 0.0, 4.0]


@pytest.mark.parametrize("regrow", [False, True, RigL()])
def test_update_sync_mask_precedes_all_uses_of_the_mask(regrow):
    """Optimizer state, weights and masks all follow the mask of the other process."""
    pruner = make_pruner(make_model(), Schedule(final=0.5), regrow=regrow)
    model = make_model()
    theirs = make_pruner(model, Schedule(final=0.5), regrow=regrow)
    moments = {}
    for one in (pruner, theirs):
        optimizer = torch.optim.AdamW(one.parameters.values())
        one.track_optimizers([optimizer])
        moments[one] = {name: torch.ones_like(w) for name, w in one.parameters.items()}
        for name, weight in one.parameters.items():
            optimizer.state[weight]["exp_avg"] = moments[one][name]
    for weight in pruner.parameters.values():
        torch.nn.init.normal_(weight)  # other scores than in the other process
    said = []
    for step in range(1, STEPS + 1):
        theirs.update(step, said.append)
        pruner.update(step, lambda mask: mask.copy_(said.pop(0)))
        pruner.project()
        for name, mask in theirs.masks.items():
            assert torch.equal(pruner.masks[name], mask)
            assert torch.equal(moments[pruner][name], moments[theirs][name])
            assert torch.equal(pruner.parameters[name] != 0, mask & (pruner.parameters[name] != 0))
    assert not said
    if regrow:  # the momentum of what returned, or was pruned, is gone
        assert all(0 < int(m.sum()) < m.numel() for m in moments[theirs].values())


GRADIENT_CRITERIA = [
    Taylor(),
    Movement(),
    PLATON(),
    SoftMovement(penalty=1.0),
    DiagonalFisher(),
    BlockFisher(block=4),
]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA)
def test_observe_nonfinite_gradient_does_not_spoil_the_state(criterion, broken):
    model = make_model()
    pruner = make_pruner(model, criterion=criterion)
    for step in range(1, STEPS + 1):
        gradients = {n: torch.randn(w.shape) for n, w in weights_of(model).items()}
        if step == 3:
            gradients["0.weight"][2:] = broken
        pruner.observe(gradients)
        pruner.update(step)
        pruner.project()
    assert [count_pruned(mask) for mask in pruner.masks.values()] == [69, 30]
    assert all(w.isfinite().all() for w in weights_of(model).values())


@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA)
def test_gradient_criteria_unobserved_rank_by_magnitude(criterion):
    """Equal scores would be pruned by index, full rows at once."""
    masks = []
    for one in (criterion, magnitude):
        pruner = make_pruner(make_model(), criterion=one)
        pruner.update(STEPS)
        masks.append(pruner.masks)
    assert all(torch.equal(masks[0][name], mask) for name, mask in masks[1].items())


@pytest.mark.parametrize("fused", [False, True])
def test_observe_gradients_are_unscaled(fused):
    scores = []
    for scale in (1.0, 1024.0):
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        pruner = make_pruner(model, criterion=Movement())
        pruner.attach(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 7)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        scores.append(pruner.state_dict()["criterion_state"]["0.weight"]["score"])
    assert scores[0].abs().max() > 0
    torch.testing.assert_close(*scores)


def test_block_fisher_does_not_regrow():
    """It compensates by the weights that are not zero, and dormant weights have values."""
    with pytest.raises(ConfigError, match=r"^regrow=true: .*BlockFisher takes them for zeros"):
        make_pruner(make_model(), criterion=BlockFisher(block=4), regrow=True)


def test_object_that_looks_like_rigl_is_refused():
    class Similar:
        def drop_and_grow(self, *args):
            return args[0]

    with pytest.raises(ConfigTypeError, match=r"expected True, False or RigL\(\)"):
        make_pruner(make_model(), regrow=Similar())
