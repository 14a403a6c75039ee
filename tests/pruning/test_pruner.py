import copy
import io
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from kd_prune.pruning.allocation import Global
from kd_prune.pruning.criterion import Movement, Platon, SoftMovement, Taylor, magnitude
from kd_prune.pruning.fisher import BlockFisher, DiagonalFisher
from kd_prune.pruning.mask import pruned_in
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.schedule import Schedule, update_plan
from kd_prune.pruning.tiles import Rows

STEPS = 20
SCHEDULE = Schedule(final=0.9, begin=0.1, end=0.8)
PLAN = update_plan(SCHEDULE, total_steps=STEPS, updates=5)
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
}


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3)).to(dtype)


def weights_of(model):
    return {name: p for name, p in model.named_parameters() if p.ndim == 2}


def make_pruner(model, schedule=SCHEDULE, **options):
    return Pruner(weights_of(model), schedule, **{"total_steps": STEPS, "updates": 5} | options)


def train_step(model, optimizer, step):
    """One optimizer step on a batch that depends on the step alone."""
    weight = next(model.parameters())
    batch = torch.randn(8, 7, generator=torch.Generator().manual_seed(step)).to(weight.dtype)
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


def run(model, pruner, optimizer, steps):
    for step in steps:
        train_step(model, optimizer, step)
        pruner.update(step)
        pruner.project()


def bits(tensor):
    return tensor.detach().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


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


@pytest.mark.parametrize("allocation", [None, Global()])
def test_interrupted_in_mid_ramp_equals_uninterrupted(allocation):
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


def test_a_longer_run_keeps_the_ramp_it_began():
    model = make_model()
    state = make_pruner(model).state_dict()
    longer = make_pruner(model, total_steps=10 * STEPS)
    assert longer.plan != PLAN
    longer.load_state_dict(state)
    assert longer.plan == PLAN


def test_loading_copies_the_masks():
    model = make_model()
    pruner, other = make_pruner(model), make_pruner(model)
    other.load_state_dict(pruner.state_dict())
    pruner.update(max(PLAN))
    assert all(mask.all() for mask in other.masks.values())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 4)), r"2.weight is \(4, 11\)"),
        (nn.Sequential(nn.Linear(7, 11)), r"2.weight is None in the state and \(3, 11\) here"),
        (
            nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3), nn.Linear(3, 3)),
            r"3.weight is \(3, 3\) in the state and None here",
        ),
    ],
)
def test_the_state_of_another_model_is_refused(model, message):
    with pytest.raises(ValueError, match=f"of another model or scope: {message}"):
        make_pruner(make_model()).load_state_dict(make_pruner(model).state_dict())


@pytest.mark.parametrize("start", [0.5, 0.97])
def test_a_model_pruned_before_keeps_its_zeros(start):
    model = make_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights_of(model).values():
            order = torch.randperm(weight.numel(), generator=generator)
            weight.view(-1)[order[: round(start * weight.numel())]] = 0.0
    zeros = {name: weight == 0 for name, weight in weights_of(model).items()}
    pruner = make_pruner(model)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for step in range(1, STEPS + 1):
        run(model, pruner, optimizer, [step])
        for name, weight in weights_of(model).items():
            assert (weight[zeros[name]] == 0).all()
    for weight in weights_of(model).values():
        expected = round(max(start, 0.9) * weight.numel())
        assert int((weight == 0).sum()) == expected


@pytest.mark.parametrize("allocation", [None, Global()])
def test_nan_is_refused_by_name(allocation):
    model = make_model()
    pruner = make_pruner(model, **({"allocation": allocation} if allocation else {}))
    with torch.no_grad():
        model[2].weight[1, 2] = float("nan")
    assert not pruner.update(1)
    with pytest.raises(ValueError, match=rf"2\.weight holds NaN at step {min(PLAN)}, .* diverged"):
        pruner.update(min(PLAN))
    assert pruner.target == 0.0
    assert all(mask.all() for mask in pruner.masks.values())  # those before it too


def test_infinite_weights_can_be_ranked():
    model = make_model()
    with torch.no_grad():
        model[2].weight[1, 2:4] = torch.tensor([float("-inf"), float("inf")])
    pruner = make_pruner(model)
    pruner.update(max(PLAN))
    assert pruner.masks["2.weight"][1, 2:4].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, -0.0])
def test_project_zeroes_whatever_is_there(value, dtype):
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


def test_masks_freeze_after_the_ramp():
    model = make_model()
    pruner = make_pruner(model)
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(1, max(PLAN) + 1))
    frozen = copy.deepcopy(pruner.masks)
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(max(PLAN) + 1, STEPS + 1))
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in frozen.items())


def test_a_criterion_may_return_the_weight_itself():
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


def test_a_selection_that_regrows_is_overruled():
    model = make_model()
    pruner = make_pruner(model)
    pruner.update(min(PLAN))
    pruned = {name: ~mask for name, mask in pruner.masks.items()}
    pruner.select = lambda scores, count, kept: torch.ones_like(kept)
    pruner.update(max(PLAN))
    assert all(not pruner.masks[name][gone].any() for name, gone in pruned.items())


def test_a_sparsity_out_of_reach_is_refused_at_once():
    with pytest.raises(ValueError, match=r"ceiling=0.85 is below the sparsity asked for, 0.9"):
        make_pruner(make_model(), allocation=Global(ceiling=0.85))


def test_a_ramp_without_a_step_is_refused_at_once():
    with pytest.raises(ValueError, match="no step of this run of 1"):
        make_pruner(make_model(), Schedule(final=0.9, end=0.4), total_steps=1)


def test_sparsity_is_counted_from_the_weights():
    model = make_model()
    pruner = make_pruner(model)
    pruner.update(max(PLAN))
    assert pruner.sparsity == 0.0, "masks alone zero nothing"
    pruner.project()
    assert pruner.sparsity == (round(0.9 * 77) + round(0.9 * 33)) / 110


def test_an_update_that_was_passed_over_is_made_up_for():
    """As where a scaler skips steps: of several the last is made, none twice."""
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


def test_attached_to_an_optimizer_it_needs_nothing_else():
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


@pytest.mark.parametrize("saved_at", [3, 11, 17])
def test_an_attached_pruner_resumes(saved_at):
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


def test_regrowth_brings_a_weight_back_with_its_value_and_without_momentum():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.0, weight_decay=0.0)
    plan = {1: 0.25, 2: 0.25 + 1e-9, 3: 0.5}
    pruner = Pruner(
        {"weight": layer.weight}, Schedule(final=0.5), total_steps=3, plan=lambda *a, **k: plan,
        regrow=True,
    )  # fmt: skip
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


def test_without_a_schedule_the_zeros_stay():
    model = make_model()
    with torch.no_grad():
        model[0].weight[::2] = 0.0
    pruner = Pruner(weights_of(model), None, total_steps=STEPS)
    run(model, pruner, OPTIMIZERS["adamw"](model.parameters()), range(1, STEPS + 1))
    assert (model[0].weight[::2] == 0).all()
    assert (model[0].weight[1::2] != 0).all()
    assert pruner.target == pruner.sparsity == 42 / 110


def test_a_state_with_regrowth_is_not_loaded_without():
    state = make_pruner(make_model(), regrow=True).state_dict()
    with pytest.raises(ValueError, match=r"saved with 'asleep' and is loaded without it"):
        make_pruner(make_model()).load_state_dict(state)


@pytest.mark.parametrize(
    "schedule", [Schedule(final=0.9, end=0.5), Schedule(final=0.8), Schedule(final=0.9, begin=0.2)]
)
def test_the_state_of_another_ramp_is_refused_and_changes_nothing(schedule):
    saved = make_pruner(make_model(), Schedule(final=0.9))
    saved.update(STEPS // 2)
    pruner = make_pruner(make_model(), schedule)
    before = copy.deepcopy(pruner.state_dict())
    with pytest.raises(ValueError, match=r"another ramp: for step \d+ of 20 it plans .*; resume"):
        pruner.load_state_dict(saved.state_dict())
    after = pruner.state_dict()
    assert all(torch.equal(mask, before["masks"][name]) for name, mask in after["masks"].items())
    assert (after["plan"], after["total_steps"]) == (before["plan"], before["total_steps"])
    frozen = make_pruner(make_model(), None)
    frozen.load_state_dict(saved.state_dict())
    assert not frozen.update(STEPS)


def test_what_is_promised_can_be_told_to_the_weight():
    model = make_model()
    pruner = make_pruner(model, Schedule(final=0.8), select=Rows())
    assert set(pruner.promised.values()) == {0}
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(1, STEPS + 1))
    assert pruner.promised == {name: pruned_in(mask) for name, mask in pruner.masks.items()}
    assert pruner.promised == {"0.weight": 63, "2.weight": 22}  # 9 rows of 11, 2 of 3: one stays
    resumed = make_pruner(make_model(), Schedule(final=0.8), select=Rows())
    resumed.load_state_dict(pruner.state_dict())
    assert resumed.promised == pruner.promised


def test_what_was_zero_before_is_promised_too():
    model = make_model()
    with torch.no_grad():
        model[0].weight[:10] = 0.0
    assert make_pruner(model, Schedule(final=0.5)).promised == {"0.weight": 70, "2.weight": 0}
    pruner = make_pruner(model, Schedule(final=0.5))
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(1, STEPS + 1))
    assert pruner.promised == {"0.weight": 70, "2.weight": 16}
    assert pruner.promised == {name: pruned_in(mask) for name, mask in pruner.masks.items()}
    rows = make_pruner(model, Schedule(final=0.7), select=Rows())
    assert rows.promised == {}  # which rows go is not a count's matter, until they went
    run(model, rows, OPTIMIZERS["sgd"](model.parameters()), range(1, STEPS + 1))
    assert rows.promised == {name: pruned_in(mask) for name, mask in rows.masks.items()}


def test_rigl_brings_single_weights_back_and_so_takes_no_groups():
    with pytest.raises(ValueError, match=r"regrow=RigL.*select=exact only, not with Rows.*regrow="):
        make_pruner(make_model(), select=Rows(), regrow=RigL())


@pytest.mark.parametrize("regrow", [False, True, RigL()])
def test_processes_agree_on_masks_before_anything_hangs_on_them(regrow):
    """What another process chose is what is cleared, zeroed and kept."""
    pruner = make_pruner(make_model(), Schedule(final=0.5), regrow=regrow)
    model = make_model()
    theirs = make_pruner(model, Schedule(final=0.5), regrow=regrow)
    for weight in pruner.parameters.values():
        torch.nn.init.normal_(weight)  # other scores here than there
    said = []
    for step in range(1, STEPS + 1):
        theirs.update(step, said.append)
        pruner.update(step, lambda mask: mask.copy_(said.pop(0)))
        pruner.project()
        for name, mask in theirs.masks.items():
            assert torch.equal(pruner.masks[name], mask)
            assert torch.equal(pruner.parameters[name] != 0, mask & (pruner.parameters[name] != 0))
    assert not said


@pytest.mark.parametrize("schedule", [SCHEDULE, None])
def test_a_tensor_that_is_zero_altogether_is_new_if_there_is_a_ramp(schedule):
    """LoRA's B begins at zero; a mask that prunes all of it would keep it there for good."""
    model = make_model()
    nn.init.zeros_(model[2].weight)
    with torch.no_grad():
        model[0].weight[:10] = 0.0
    fate = "so taken for new" if schedule else "so kept at zero; leave new weights"
    with pytest.warns(UserWarning, match=rf"^2\.weight: zero altogether, {fate}"):
        pruner = make_pruner(model, schedule)
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(1, STEPS + 1))
    zeros = {name: int((weight == 0).sum()) for name, weight in weights_of(model).items()}
    assert zeros == {"0.weight": 70, "2.weight": round(0.9 * 33) if schedule else 33}


GRADIENT_CRITERIA = [
    Taylor(),
    Movement(),
    Platon(),
    SoftMovement(penalty=1.0),
    DiagonalFisher(),
    BlockFisher(block=4),
]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA)
def test_one_broken_gradient_does_not_break_the_memory(criterion, broken):
    model = make_model()
    pruner = make_pruner(model, criterion=criterion)
    for step in range(1, STEPS + 1):
        gradients = {n: torch.randn(w.shape) for n, w in weights_of(model).items()}
        if step == 3:
            gradients["0.weight"][2:] = broken
        pruner.observe(gradients)
        pruner.update(step)
        pruner.project()
    assert [pruned_in(mask) for mask in pruner.masks.values()] == [69, 30]
    assert all(w.isfinite().all() for w in weights_of(model).values())


@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA)
def test_the_ranking_is_by_magnitude_where_nothing_was_seen(criterion):
    """Equal scores would go by their place, whole rows at once."""
    masks = []
    for one in (criterion, magnitude):
        pruner = make_pruner(make_model(), criterion=one)
        pruner.update(STEPS)
        masks.append(pruner.masks)
    assert all(torch.equal(masks[0][name], mask) for name, mask in masks[1].items())


def nan_of_one(weight):
    return weight / 0 if weight.shape == (3, 11) else weight.abs()


def of_rows(weight):
    return weight.abs().sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"criterion": nan_of_one}, r"nan_of_one.*: gives NaN for 2\.weight"),
        ({"select": lambda scores, count, kept: kept[:1]}, r"mask of shape \(1, 7\) for 0\.weight"),
        ({"criterion": of_rows}, r"scores of shape \(11, 1\) for 0\.weight; .*\(11, 7\)"),
    ],
)
def test_scores_that_do_not_fit_are_refused_and_change_nothing(options, says):
    model = make_model()
    nn.init.zeros_(model[2].weight[0])
    pruner = make_pruner(model, **options)
    before = copy.deepcopy(pruner.state_dict())
    with pytest.raises(ValueError, match=says):
        pruner.update(STEPS)
    after = pruner.state_dict()
    assert all(torch.equal(after["masks"][name], mask) for name, mask in before["masks"].items())
    assert after["updated_at"] == before["updated_at"] == 0


@pytest.mark.parametrize("count", [69.3, 78, -1, None])
def test_counts_that_do_not_fit_are_refused_at_the_start(count):
    says = r"allocation=.*: gave no whole number from 0 to the 77 weights of 0\.weight"
    with pytest.raises(ValueError, match=says):
        make_pruner(
            make_model(),
            allocation=lambda masks, score, sparsity: {"0.weight": count, "2.weight": 30},
        )


def test_projection_touches_one_optimizers_weights_alone():
    """What another network's backward pass waits for must stay as it was."""
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


def test_numbers_of_numpy_are_saved_as_plain_ones():
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


def test_the_plan_counts_what_is_zero_already():
    model = make_model()
    with torch.no_grad():
        model[0].weight[:10] = 0.0
    plan = make_pruner(model, Schedule(final=0.5)).preview()
    assert [tensor.pruned for tensor in plan.tensors] == [70, 16]
    plan = make_pruner(model, Schedule(final=0.5), regrow=True).preview()
    assert [tensor.pruned for tensor in plan.tensors] == [38, 16]


@pytest.mark.parametrize("fused", [False, True])
def test_a_criterion_sees_gradients_as_they_are_whoever_unscales_them(fused):
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
        scores.append(pruner.state_dict()["memory"]["0.weight"]["score"])
    assert scores[0].abs().max() > 0
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"criterion": "movement"}, "criterion='movement': expected a function or an object"),
        ({"select": Rows}, "select=Rows: expected an object, not its class; write Rows()"),
        ({"regrow": "yes"}, "regrow='yes': expected True, False or RigL()"),
        ({"schedule": 0.9}, "schedule=0.9: expected a Schedule, as Schedule(final=0.9)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_choice_of_another_kind_is_refused(options, says):
    with pytest.raises(TypeError, match=f"^{re.escape(says)}"):
        make_pruner(make_model(), **options)


def test_a_model_in_place_of_its_parameters_is_refused():
    with pytest.raises(TypeError, match=r"parameters=Sequential: .* default_scope\(model\)\.taken"):
        Pruner(make_model(), SCHEDULE, total_steps=STEPS)
