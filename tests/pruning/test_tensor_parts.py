"""Pruner on tensors that are more than a matrix: experts, and weights under a norm."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from kd_prune.errors import ConfigError
from kd_prune.pruning import (
    ERK,
    NM,
    Block,
    Global,
    GroupAllocation,
    Heads,
    Movement,
    Pruner,
    RigL,
    Rows,
    Schedule,
    Scope,
    default_scope,
    unstructured,
)

WIDTHS = [(12, 8), (8, 4)]  # outputs and inputs of an expert's matrices


class Experts(nn.Module):
    """Four experts; `is_transposed`: stored as (expert, input, output)."""

    def __init__(self, *, is_transposed):
        super().__init__()
        self.is_transposed = is_transposed
        generator = torch.Generator().manual_seed(0)
        for name, shape in zip(("up", "down"), WIDTHS, strict=True):
            weight = torch.randn(4, *shape, generator=generator)
            weight = weight.mT.contiguous() if is_transposed else weight
            self.register_parameter(name, nn.Parameter(weight))


class Single(nn.Module):
    """The same matrices as separate layers."""

    def __init__(self, experts):
        super().__init__()
        for name in ("up", "down"):
            stack = getattr(experts, name).detach()
            for i, weight in enumerate(stack.mT if experts.is_transposed else stack):
                layer = nn.Linear(*weight.shape[::-1], bias=False)
                layer.weight.data.copy_(weight)
                self.add_module(f"{name}_{i}", layer)


def prune(parameters, **settings):
    pruner = Pruner(parameters, Schedule(final=0.75), total_steps=4, updates=4, **settings)
    for step in range(1, 5):
        pruner.update(step)
        pruner.project()
        assert step != 4 or pruner.target == 0.75
    return pruner


SETTINGS = {
    "uniform": {},
    "global": {"allocation": Global(ceiling=0.9)},
    "normalized": {"allocation": Global(normalized=True, floor=0.5)},
    "erk": {"allocation": ERK()},
    "regrow": {"regrow": True},
    "nm": {"granularity": NM(n=1, m=4)},
    "blocks": {"granularity": Block(rows=2, columns=4)},
    "rows": {"granularity": Rows()},
    "heads": {"granularity": Heads(size=2)},
}


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("kind", SETTINGS)
def test_experts_are_pruned_like_separate_layers(kind, is_transposed):
    """The oracle: a Linear per expert. Masks and planned counts are equal."""
    experts = Experts(is_transposed=is_transposed)
    single = Single(experts)
    apart = prune(Scope(include=["*.weight"]).select(single), **SETTINGS[kind])
    pruner = prune(
        default_scope(nn.Sequential(experts, nn.Linear(4, 2))).included, **SETTINGS[kind]
    )
    for name in ("up", "down"):
        stack = pruner.masks[f"0.{name}"]
        assert stack.shape == getattr(experts, name).shape
        expected = [apart.masks[f"{name}_{i}.weight"] for i in range(4)]
        assert torch.equal(stack.mT if is_transposed else stack, torch.stack(expected))
        planned = sum(apart.expected_pruned[f"{name}_{i}.weight"] for i in range(4))
        assert pruner.expected_pruned[f"0.{name}"] == planned == int((~stack).sum())


def test_experts_with_zeros_count_each_for_itself():
    experts = Experts(is_transposed=False)
    with torch.no_grad():
        experts.up[0] = torch.where(torch.arange(96).view(12, 8) < 90, 0.0, experts.up[0])
    pruner = prune(Scope(include=["up"]).select(experts), keep_zeros=True)
    assert (~pruner.masks["up"]).sum((1, 2)).tolist() == [90, 72, 72, 72]
    assert pruner.expected_pruned == {"up": 90 + 3 * 72}


def test_group_allocation_names_experts_by_their_tensor():
    allocation = GroupAllocation(ratios={"up": 2.0, "do?n": 1.0})
    pruner = prune(Scope(include=["*"]).select(Experts(is_transposed=False)), allocation=allocation)
    density = {name: float(mask.float().mean()) for name, mask in pruner.masks.items()}
    assert density["up"] == pytest.approx(2 * density["down"], rel=0.05)


def test_group_that_does_not_fit_one_expert_is_refused():
    """Sixteen rows divide all experts together, but not one."""
    parameters = Scope(include=["up"]).select(Experts(is_transposed=False))
    with pytest.raises(ConfigError, match=r"up\[0\]: tiles of 16 × 8 do not divide the 12 × 8"):
        prune(parameters, granularity=Block(rows=16, columns=8))


def normed(norm=parametrizations.weight_norm, width=8):
    torch.manual_seed(0)
    return nn.Sequential(norm(nn.Linear(width, 16)), nn.Linear(16, 16), nn.Linear(16, 2))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"allocation": Global(ceiling=0.87)},
        {"regrow": True},
        {"criterion": Movement()},
        {"granularity": NM(n=1, m=4), "final": 0.75},
    ],
    ids=str,
)
def test_weight_norm_keeps_a_weight_in_every_row(settings):
    """Rows of very different size: the smallest would be emptied first."""
    model = normed()
    with torch.no_grad():
        model[0].parametrizations.weight.original1.mul_(torch.logspace(-6, 0, 16)[:, None])
    final = settings.pop("final", 0.87)
    scope = default_scope(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = Pruner(scope.included, Schedule(final=final), total_steps=6, updates=3, **settings)
    pruner.attach(optimizer)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    direction = model[0].parametrizations.weight.original1
    assert (model[0].weight == 0).equal(direction == 0)
    assert (direction != 0).any(1).all()
    assert model(torch.randn(4, 8)).isfinite().all()
    assert pruner.sparsity == pytest.approx(final, abs=0.005)
    assert pruner.expected_pruned == {n: int((~m).sum()) for n, m in pruner.masks.items()}


def test_rigl_keeps_a_weight_in_every_row_of_a_weight_norm():
    model = normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(
        default_scope(model).included, Schedule(final=0.8), total_steps=8, updates=4,
        regrow=RigL(fraction=0.5),
    )  # fmt: skip
    pruner.attach(optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        assert model[0].weight.isfinite().all()


def test_sparsity_that_empties_rows_of_a_weight_norm_is_refused():
    message = r"original1: at most 112 of its 128 weights can be pruned, not 122.*exclude it"
    with pytest.raises(ConfigError, match=message):
        Pruner(default_scope(normed()).included, Schedule(final=0.95), total_steps=4)


@pytest.mark.parametrize("granularity", [Rows(), Block(rows=1, columns=8)])
def test_groups_in_a_weight_norm_are_refused(granularity):
    parameters = default_scope(normed()).included
    with pytest.raises(ConfigError, match=r"may leave a row of .*original1 empty"):
        Pruner(parameters, Schedule(final=0.5), total_steps=4, granularity=granularity)
    parameters = default_scope(normed(parametrizations.spectral_norm)).included
    Pruner(parameters, Schedule(final=0.5), total_steps=4, granularity=granularity)


def test_own_selection_in_a_weight_norm_gets_the_best_of_every_row_as_infinite():
    seen = {}

    def selection(scores, count, kept):
        seen[tuple(scores.shape)] = scores
        return unstructured(scores, count, kept)

    prune(default_scope(normed()).included, granularity=selection)
    assert seen[16, 8].isinf().sum(1).tolist() == [1] * 16
    assert not seen[16, 16].isinf().any()
