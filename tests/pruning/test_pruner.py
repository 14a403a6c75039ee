"""Pruner: masks on schedule, projection, attachment."""

import copy

import pytest
import torch
from torch import nn

from kd_prune.pruning.allocation import Global
from kd_prune.pruning.criteria import PLATON, Movement, Taylor
from kd_prune.pruning.granularity.structured import Rows
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.selection import count_pruned, unstructured

from .toy import (
    OPTIMIZERS,
    PLAN,
    SCHEDULE,
    STEPS,
    bits,
    make_model,
    make_pruner,
    run,
    train_step,
    weights_of,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_are_exactly_zero_after_every_step(optimizer, dtype):
    model = make_model(dtype)
    pruner = make_pruner(model)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    reached = 0.0
    for step in range(1, STEPS + 1):
        train_step(model, optimizer, step)
        trained = {name: weight.detach().clone() for name, weight in weights_of(model).items()}
        assert pruner.update(step) == (step in PLAN)
        pruner.project()
        reached = PLAN.get(step, reached)
        assert pruner.target == reached
        for name, weight in weights_of(model).items():
            mask = pruner.masks[name]
            assert int((~mask).sum()) == round(reached * weight.numel())
            assert (bits(weight)[~mask] == 0).all()
            assert torch.equal(bits(weight)[mask], bits(trained[name])[mask])
            assert not (mask & ~before[name]).any(), "a pruned weight came back"
            before[name] = mask.clone()
    assert reached == 0.9
    assert pruner.sparsity == (round(0.9 * 77) + round(0.9 * 33)) / 110


def test_global_target_is_met_exactly_over_all_tensors():
    model = make_model()
    with torch.no_grad():
        model[0].weight.mul_(0.1)  # all its weights rank low
    pruner = make_pruner(model, allocation=Global(ceiling=0.95))
    run(model, pruner, OPTIMIZERS["adamw"](model.parameters()), range(1, STEPS + 1))
    pruned = {name: int((~mask).sum()) for name, mask in pruner.masks.items()}
    assert sum(pruned.values()) == round(0.9 * 110)
    assert pruned["0.weight"] == 74  # ⌈0.95 · 77⌉


@pytest.mark.parametrize("start", [0.5, 0.97])
def test_pruner_pruned_model_keeps_its_zeros(start):
    model = make_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights_of(model).values():
            order = torch.randperm(weight.numel(), generator=generator)
            weight.view(-1)[order[: round(start * weight.numel())]] = 0.0
    zeros = {name: weight == 0 for name, weight in weights_of(model).items()}
    pruner = make_pruner(model, keep_zeros=True)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for step in range(1, STEPS + 1):
        run(model, pruner, optimizer, [step])
        for name, weight in weights_of(model).items():
            assert (weight[zeros[name]] == 0).all()
    for weight in weights_of(model).values():
        expected = round(max(start, 0.9) * weight.numel())
        assert int((weight == 0).sum()) == expected


def test_update_infinite_weights_are_ranked():
    model = make_model()
    with torch.no_grad():
        model[2].weight[1, 2:4] = torch.tensor([float("-inf"), float("inf")])
    pruner = make_pruner(model)
    pruner.update(max(PLAN))
    assert pruner.masks["2.weight"][1, 2:4].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, -0.0])
def test_project_any_value_becomes_zero(value, dtype):
    weight = nn.Parameter(torch.ones(2, 3, dtype=dtype).T)  # not contiguous
    pruner = Pruner({"weight": weight}, Schedule(final=0.5), total_steps=1)
    pruner.update(1)
    with torch.no_grad():
        weight.fill_(value)
    pruner.project()
    mask = pruner.masks["weight"]
    assert torch.equal(weight[~mask], torch.zeros(3, dtype=dtype))
    assert not weight[~mask].signbit().any()
    assert torch.equal(weight[mask].nan_to_num(), torch.full((3,), value, dtype=dtype).nan_to_num())


def test_update_after_ramp_masks_are_constant():
    model = make_model()
    pruner = make_pruner(model)
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(1, max(PLAN) + 1))
    frozen = copy.deepcopy(pruner.masks)
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(max(PLAN) + 1, STEPS + 1))
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in frozen.items())


def test_criterion_returning_the_weight_does_not_change_it():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    pruner = make_pruner(model, criterion=lambda weight: weight, allocation=Global(ceiling=0.95))
    pruner.update(max(PLAN))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    pruner.project()
    kept = torch.cat([weight[weight != 0] for weight in weights_of(model).values()])
    assert len(kept) == 11
    assert (kept > 0).all()


@pytest.mark.parametrize("criterion", [Taylor(), Movement(), PLATON()])
def test_granularity_of_ones_own_may_change_its_scores(criterion):
    """Those of a criterion with a state are no part of the state."""

    def smallest(scores, count, kept):
        scores.masked_fill_(~kept, -torch.inf)
        return unstructured(scores, count, torch.ones_like(kept))

    found = []
    for granularity in (unstructured, smallest):
        model = make_model()
        pruner = make_pruner(model, criterion=criterion, granularity=granularity)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruner.attach(optimizer)
        for step in range(1, STEPS + 1):
            train_step(model, optimizer, step)
        found.append(pruner.masks)
    for name, mask in found[0].items():
        assert torch.equal(mask, found[1][name])


def test_sparsity_is_counted_from_the_weights():
    model = make_model()
    pruner = make_pruner(model)
    pruner.update(max(PLAN))
    assert pruner.sparsity == 0.0, "masks alone zero nothing"
    pruner.project()
    assert pruner.sparsity == (round(0.9 * 77) + round(0.9 * 33)) / 110


def test_update_missed_update_is_made_up_for():
    """As when a scaler skips steps: of several updates the last is made, and none twice."""
    whole, gaps = make_model(), make_model()
    always, seldom = make_pruner(whole), make_pruner(gaps)
    steps = sorted(PLAN)
    for step in steps:
        always.update(step)
    assert not seldom.update(steps[0] - 1)
    assert seldom.update(steps[1] + 1)
    assert seldom.target == PLAN[steps[1]]
    assert not seldom.update(steps[1] + 1)
    assert seldom.update(STEPS)
    assert not seldom.update(STEPS)
    for name, mask in always.masks.items():
        assert torch.equal(mask, seldom.masks[name])


def test_attach_prunes_without_further_calls():
    by_hand, attached = make_model(), make_model()
    pruners = make_pruner(by_hand), make_pruner(attached)
    optimizers = [OPTIMIZERS["adamw"](m.parameters()) for m in (by_hand, attached)]
    pruners[1].attach(optimizers[1])
    run(by_hand, pruners[0], optimizers[0], range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        train_step(attached, optimizers[1], step)
        assert pruners[1].steps == step
    for ours, theirs in zip(by_hand.parameters(), attached.parameters(), strict=True):
        assert torch.equal(bits(ours), bits(theirs))
    assert pruners[1].sparsity == 99 / 110


def test_pruner_without_schedule_keeps_zeros():
    model = make_model()
    with torch.no_grad():
        model[0].weight[::2] = 0.0
    pruner = Pruner(weights_of(model), None, total_steps=STEPS)
    run(model, pruner, OPTIMIZERS["adamw"](model.parameters()), range(1, STEPS + 1))
    assert (model[0].weight[::2] == 0).all()
    assert (model[0].weight[1::2] != 0).all()
    assert pruner.target == pruner.sparsity == 42 / 110


def test_expected_pruned_equals_masks_exactly():
    model = make_model()
    pruner = make_pruner(model, Schedule(final=0.8), granularity=Rows())
    assert set(pruner.expected_pruned.values()) == {0}
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(1, STEPS + 1))
    assert pruner.expected_pruned == {
        name: count_pruned(mask) for name, mask in pruner.masks.items()
    }
    assert pruner.expected_pruned == {
        "0.weight": 63,
        "2.weight": 22,
    }  # 9 rows of 11, 2 of 3: one stays
    resumed = make_pruner(make_model(), Schedule(final=0.8), granularity=Rows())
    resumed.load_state_dict(pruner.state_dict())
    assert resumed.expected_pruned == pruner.expected_pruned


def test_expected_pruned_includes_initial_zeros():
    model = make_model()
    with torch.no_grad():
        model[0].weight[:10] = 0.0
    assert make_pruner(model, Schedule(final=0.5), keep_zeros=True).expected_pruned == {
        "0.weight": 70,
        "2.weight": 0,
    }
    pruner = make_pruner(model, Schedule(final=0.5), keep_zeros=True)
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(1, STEPS + 1))
    assert pruner.expected_pruned == {"0.weight": 70, "2.weight": 16}
    assert pruner.expected_pruned == {
        name: count_pruned(mask) for name, mask in pruner.masks.items()
    }
    rows = make_pruner(model, Schedule(final=0.7), granularity=Rows(), keep_zeros=True)
    assert rows.expected_pruned == {}  # counts of rows with zeros are unknown until the last update
    run(model, rows, OPTIMIZERS["sgd"](model.parameters()), range(1, STEPS + 1))
    assert rows.expected_pruned == {name: count_pruned(mask) for name, mask in rows.masks.items()}


@pytest.mark.parametrize("schedule", [SCHEDULE, None])
def test_pruner_all_zero_tensor_is_new_with_a_schedule(schedule):
    """LoRA's B is initialized with zeros and must be able to train."""
    model = make_model()
    nn.init.zeros_(model[2].weight)
    with torch.no_grad():
        model[0].weight[:10] = 0.0
    fate = "so taken for new" if schedule else "so kept at zero; leave new weights out"
    pruner = make_pruner(model, schedule, keep_zeros=True)
    with pytest.warns(UserWarning, match=rf"^2\.weight: zero altogether, {fate}"):
        run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(1, STEPS + 1))
    zeros = {name: int((weight == 0).sum()) for name, weight in weights_of(model).items()}
    assert zeros == {"0.weight": 70, "2.weight": round(0.9 * 33) if schedule else 33}


def test_project_optimizer_changes_only_its_weights():
    """Weights needed by another network's backward pass must not be modified."""
    model = make_model()
    pruner = make_pruner(model)
    pruner.update(STEPS)
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    versions = {name: weight._version for name, weight in weights_of(model).items()}
    pruner.project(first)
    assert model[0].weight._version > versions["0.weight"]
    assert model[2].weight._version == versions["2.weight"]
    assert (model[0].weight == 0).sum() == 69
    assert (model[2].weight == 0).sum() == 0


def test_preview_counts_initial_zeros():
    model = make_model()
    with torch.no_grad():
        model[0].weight[:10] = 0.0
    plan = make_pruner(model, Schedule(final=0.5), keep_zeros=True).preview()
    assert [tensor.pruned for tensor in plan.tensors] == [70, 16]
    plan = make_pruner(model, Schedule(final=0.5), regrow=True).preview()
    assert [tensor.pruned for tensor in plan.tensors] == [38, 16]


def test_losses_of_one_forward_pass_and_two_optimizers():
    """An update while the second network's backward pass is pending leaves its weights alone."""
    torch.manual_seed(0)
    actor, critic = nn.Linear(8, 16), nn.Linear(8, 16)
    through = {"actor": nn.Linear(16, 1), "critic": nn.Linear(16, 1)}
    networks = [nn.Sequential(actor, through["actor"]), nn.Sequential(critic, through["critic"])]
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.01) for network in networks]
    weights = {"actor": actor.weight, "critic": critic.weight}
    weights |= {f"{name}_out": layer.weight for name, layer in through.items()}
    pruner = Pruner(weights, Schedule(final=0.75), total_steps=20)
    for optimizer in optimizers:
        pruner.attach(optimizer)
    for _ in range(10):
        rows = torch.randn(4, 8)
        losses = [network(rows).square().mean() for network in networks]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, weight in weights.items():
        assert int((weight == 0).sum()) == round(0.75 * weight.numel()), name


def test_a_copy_is_attached_to_the_copy_of_the_optimizer():
    layer = nn.Linear(10, 10)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    pruner = Pruner({"weight": layer.weight}, Schedule(final=0.9), total_steps=6)
    pruner.attach(optimizer)

    def steps(layer, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(10)).sum().backward()
            optimizer.step()

    steps(layer, optimizer)
    copies = copy.deepcopy((layer, optimizer, pruner))
    copies[2].attach(copies[1])
    steps(*copies[:2])
    assert (copies[2].sparsity, copies[2].steps) == (0.9, 6)
    assert pruner.steps == 3
    assert pruner.sparsity < 0.9
