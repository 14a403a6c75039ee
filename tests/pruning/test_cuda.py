"""Pruning on a GPU: the masks of the CPU, every criterion, a loss scaler, a compiled model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kd_prune.pruning import (
    ERK,
    NM,
    PLATON,
    Block,
    BlockFisher,
    DiagonalFisher,
    Global,
    Movement,
    Pruner,
    Random,
    RigL,
    Rows,
    Schedule,
    SoftMovement,
    Taylor,
    Threshold,
    magnitude,
    uniform,
    unstructured,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STEPS = 20
SCHEDULE = Schedule(final=0.9, begin=0.1, end=0.8)


def make_model(device, *, whole=False):
    """The same weights on every device; `whole` gives integers, with ties and exact sums."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))
    if whole:
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.randint(-20, 20, weight.shape))
    return model.to(device)


def matrices(model):
    return {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}


def batch_of(step):
    return torch.randn(16, 64, generator=torch.Generator().manual_seed(step)).cuda()


def loss_of(model, step):
    return model(batch_of(step)).square().mean()


@pytest.mark.parametrize("allocation", [uniform, Global(), Global(normalized=True), ERK()])
@pytest.mark.parametrize("granularity", [unstructured, Block(rows=2, columns=4), Rows()])
@pytest.mark.parametrize("whole", [False, True])
def test_cuda_masks_equal_cpu_masks(granularity, allocation, whole):
    if not whole and (granularity is not unstructured or allocation == Global(normalized=True)):
        pytest.skip("sums are rounded in another order there")
    there, here = (
        Pruner(
            matrices(make_model(device, whole=whole)),
            SCHEDULE,
            total_steps=STEPS,
            updates=5,
            allocation=allocation,
            granularity=granularity,
        )
        for device in ("cuda", "cpu")
    )
    for step in range(1, STEPS + 1):
        for pruner in (there, here):
            pruner.update(step)
            pruner.project()
        for name, mask in here.masks.items():
            assert there.masks[name].is_cuda
            assert torch.equal(there.masks[name].cpu(), mask), (step, name)


def test_cuda_nm_masks_equal_cpu_masks():
    there, here = (
        Pruner(matrices(make_model(d)), Schedule(final=0.5), total_steps=2, granularity=NM())
        for d in ("cuda", "cpu")
    )
    for pruner in (there, here):
        pruner.update(2)
    for name, mask in here.masks.items():
        assert torch.equal(there.masks[name].cpu(), mask)


@pytest.mark.parametrize("size", [1_000, 3_000_000])
@pytest.mark.parametrize("tied", [False, True])
def test_cuda_unstructured_many_weights_equals_cpu(size, tied):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(0))
    scores = (scores * 8).round() if tied else scores
    kept = torch.rand(size, generator=torch.Generator().manual_seed(1)) > 0.4
    for sparsity in (0.41, 0.6, 0.95, 0.9999):
        count = round(sparsity * size)
        found = unstructured(scores.cuda(), count, kept.cuda())
        assert torch.equal(found.cpu(), unstructured(scores, count, kept))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_project_any_value_becomes_zero(value, dtype):
    model = make_model("cuda").to(dtype)
    pruner = Pruner(matrices(model), Schedule(final=0.5), total_steps=1, updates=1)
    pruner.update(1)
    for name, weight in matrices(model).items():
        with torch.no_grad():
            weight[~pruner.masks[name]] = value
    pruner.project()
    assert pruner.sparsity == 0.5


def test_update_nan_weight_raises_with_its_name():
    model = make_model("cuda")
    pruner = Pruner(matrices(model), Schedule(final=0.5), total_steps=1, updates=1)
    with torch.no_grad():
        model[2].weight[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"2\.weight contains NaN at step 1, .* diverged"):
        pruner.update(1)


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": Random()},
        {"criterion": Taylor()},
        {"criterion": Movement()},
        {"criterion": SoftMovement(rate=1.0, penalty=10.0), "allocation": Threshold()},
        {"criterion": PLATON()},
        {"criterion": DiagonalFisher()},
        {"criterion": BlockFisher(block=16)},
        {"regrow": True},
        {"regrow": RigL()},
    ],
    ids=repr,
)
def test_attach_plain_loop_every_criterion_reaches_final(settings):
    model = make_model("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = Pruner(matrices(model), SCHEDULE, total_steps=STEPS, updates=5, **settings)
    pruner.attach(optimizer)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    expected = sum(int((~mask).sum()) for mask in pruner.masks.values())
    assert expected == sum(int((w == 0).sum()) for w in matrices(model).values())
    if not isinstance(settings.get("allocation"), Threshold):
        assert pruner.sparsity == pytest.approx(0.9, abs=1e-4)


def test_attach_steps_skipped_by_scaler_do_not_count():
    model = make_model("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0)
    pruner = Pruner(matrices(model), Schedule(final=0.9), total_steps=STEPS - 3, updates=5)
    pruner.attach(optimizer)
    skipped = {2, 7, 8}
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = loss_of(model, step)
        scaler.scale(loss).backward()
        if step in skipped:
            model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        assert pruner.steps == step - sum(s <= step for s in skipped)
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-4)


def test_masks_follow_a_moved_model():
    model = make_model("cpu")
    pruner = Pruner(matrices(model), SCHEDULE, total_steps=STEPS, updates=5)
    for step in range(1, STEPS + 1):
        pruner.update(step)
        pruner.project()
        if step == STEPS // 2:
            model.to("cuda")
    assert all(mask.is_cuda for mask in pruner.masks.values())
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-4)


def test_state_dict_loads_on_another_device():
    model = make_model("cuda")
    pruner = Pruner(matrices(model), SCHEDULE, total_steps=STEPS, updates=5)
    pruner.update(STEPS)
    state = copy.deepcopy(pruner.state_dict())
    other = Pruner(matrices(make_model("cpu")), SCHEDULE, total_steps=STEPS, updates=5)
    other.load_state_dict(state)
    other.project()
    assert other.sparsity == pytest.approx(0.9, abs=1e-4)


@pytest.mark.filterwarnings("default")  # raised by the compiler
def test_compiled_model_is_pruned():
    model = make_model("cuda")
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = Pruner(matrices(model), SCHEDULE, total_steps=STEPS, updates=5, criterion=magnitude)
    pruner.attach(optimizer)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_of(compiled, step).backward()
        optimizer.step()
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-4)
    # The compiled model uses the pruned weights.
    torch.testing.assert_close(compiled(batch_of(0)), model(batch_of(0)), rtol=1e-4, atol=1e-4)
