"""No tensor loses all its weights unless asked for."""

import pytest
import torch
from torch import nn

from kd_prune.pruning import ERK, Block, Global, Pruner, Rows, Schedule, uniform
from kd_prune.pruning.selection import count_pruned

SAYS = "would lose all weights at sparsity 0.95, so one .* is kept; .*allow_empty=True"


def narrow():
    torch.manual_seed(0)
    return {"a": nn.Linear(1, 8).weight, "b": nn.Linear(40, 100).weight}


def prune(weights, **options):
    pruner = Pruner(weights, Schedule(final=0.95), total_steps=10, updates=5, **options)
    for step in range(1, 11):
        pruner.update(step)
        pruner.project()
    return pruner


def test_uniform_keeps_one_weight_of_a_narrow_layer_and_says_so_before_training():
    weights = narrow()
    largest = int(weights["a"].abs().argmax())
    with pytest.warns(UserWarning, match=f"^a: {SAYS}"):
        pruner = Pruner(weights, Schedule(final=0.95), total_steps=10, updates=5)
    assert [tensor.pruned for tensor in pruner.preview().tensors] == [7, 3800]
    for step in range(1, 11):  # warns only once
        pruner.update(step)
    assert pruner.masks["a"].flatten().nonzero().tolist() == [[largest]]
    assert pruner.expected_pruned == {n: count_pruned(m) for n, m in pruner.masks.items()}


@pytest.mark.parametrize(
    "granularity", [{}, {"granularity": Rows()}, {"granularity": Block(rows=2, columns=1)}]
)
def test_one_threshold_for_all_tensors_keeps_a_weight_or_a_group_of_each(granularity):
    weights = narrow()
    with torch.no_grad():
        weights["a"].mul_(1e-3)  # all its scores are the lowest
    with pytest.warns(UserWarning, match=r"^a: would lose all weights at sparsity 0\.\d+, so one"):
        pruner = prune(weights, allocation=Global(), **granularity)
    kept = int(pruner.masks["a"].sum())
    assert kept == (2 if isinstance(granularity.get("granularity"), Block) else 1)
    assert pruner.masks["b"].any()


@pytest.mark.parametrize("allocation", [uniform, Global(), ERK()])
def test_allow_empty_prunes_the_last_weight(allocation):
    weights = narrow()
    with torch.no_grad():
        weights["a"].mul_(1e-3)
    pruner = prune(weights, allocation=allocation, allow_empty=True)
    total = sum(count_pruned(mask) for mask in pruner.masks.values())
    assert total == (round(0.95 * 8) + 3800 if allocation is uniform else round(0.95 * 4008))
    assert bool(pruner.masks["a"].any()) == isinstance(allocation, ERK)


def test_a_tensor_that_was_emptied_before_stays_empty():
    weights = narrow()
    with torch.no_grad():
        weights["a"].mul_(1e-3)
    emptied = prune(weights, allocation=Global(), allow_empty=True)
    resumed = Pruner(weights, Schedule(final=0.95), total_steps=10, updates=5, allocation=Global())
    resumed.load_state_dict(emptied.state_dict())
    resumed.update(10)
    assert not resumed.masks["a"].any()
