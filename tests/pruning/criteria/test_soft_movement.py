"""Soft movement pruning against scores trained by autograd with straight-through masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_prune.pruning import Pruner, Schedule, SoftMovement, Threshold, periodic_updates

STEPS = 40
RATE, PENALTY, LEARNING_RATE = 0.2, 1.0, 0.05
GENERATOR = torch.Generator().manual_seed(0)
START = [torch.randn(8, 6, generator=GENERATOR), torch.randn(3, 8, generator=GENERATOR)]
INPUTS = torch.randn(STEPS, 16, 6, generator=GENERATOR)
TARGETS = torch.randn(STEPS, 16, 3, generator=GENERATOR)


def loss_of(weights, step):
    hidden = nn.functional.linear(INPUTS[step], weights[0]).tanh()
    return (nn.functional.linear(hidden, weights[1]) - TARGETS[step]).square().mean()


class Masked(torch.autograd.Function):
    """``w ⊙ mask`` with the straight-through gradient of the scores."""

    @staticmethod
    def forward(context, weight, scores, mask):
        context.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(context, gradient):
        weight, mask = context.saved_tensors
        return gradient * mask, gradient * weight, None


def above(scores, threshold, min_density):
    """The reference's ThresholdBinarizer, which keeps a minimum of weights."""
    mask = scores.sigmoid() > threshold
    smallest = int(min_density * scores.numel()) + 1
    if mask.sum() < smallest:
        mask = scores > scores.flatten().kthvalue(scores.numel() - smallest).values
    return mask


def reference(updates, threshold, min_density):
    """Weights and scores as leaves, and masks from all scores at every update."""
    weights = [w.clone().requires_grad_() for w in START]
    scores = [torch.zeros_like(w).requires_grad_() for w in START]
    masks = [torch.ones_like(w) for w in START]
    ours = torch.optim.SGD(weights, lr=LEARNING_RATE)
    theirs = torch.optim.Adam(scores, lr=RATE)
    came_back = 0
    for step in range(STEPS):
        ours.zero_grad()
        theirs.zero_grad()
        applied = [Masked.apply(*parts) for parts in zip(weights, scores, masks, strict=True)]
        pull = PENALTY * sum(s.sigmoid().mean() for s in scores)
        (loss_of(applied, step) + pull).backward()
        ours.step()
        theirs.step()
        if step + 1 in updates:
            new = [above(s.detach(), threshold, min_density) for s in scores]
            came_back += sum(int((n & (m == 0)).sum()) for n, m in zip(new, masks, strict=True))
            masks = [mask.float() for mask in new]
    return [w.detach() * m for w, m in zip(weights, masks, strict=True)], masks, came_back


@pytest.mark.parametrize("min_density", [0.005, 0.4])
def test_soft_movement_equals_reference_trained_by_autograd(min_density):
    weights = {str(i): nn.Parameter(w.clone()) for i, w in enumerate(START)}
    pruner = Pruner(
        weights,
        Schedule(final=0.9),  # ignored by Threshold
        total_steps=STEPS,
        updates=10,
        criterion=SoftMovement(rate=RATE, penalty=PENALTY),
        allocation=Threshold(threshold=0.1, min_density=min_density),
        update_schedule=periodic_updates,
        regrow=True,
    )
    optimizer = torch.optim.SGD(weights.values(), lr=LEARNING_RATE)
    pruner.attach(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(list(weights.values()), step).backward()
        optimizer.step()
    expected, masks, came_back = reference(pruner.update_schedule, 0.1, min_density)
    assert came_back > 0  # otherwise nested masks would suffice
    for weight, wanted, kept, mask in zip(
        weights.values(), expected, pruner.masks.values(), masks, strict=True
    ):
        assert torch.equal(kept, mask.bool())
        torch.testing.assert_close(weight.detach(), wanted, rtol=1e-4, atol=1e-6)
    assert 0.1 < pruner.sparsity < 0.9
    assert sum(pruner.expected_pruned.values()) == sum(int((mask == 0).sum()) for mask in masks)


def test_two_steps_of_soft_movement_by_hand():
    """w = 2, one of two weights; Adam's first step is the rate, its second follows both gradients.

    Step 1: G = 2 · 0.5 + 4 · ¼ / 2 = 1.5, S = −0.1. Step 2: σ(−0.1) = 0.475021, so σ(1 − σ) =
    0.249376 and G = 2 · (−1) + 4 · 0.249376 / 2 = −1.501248; the mean is (0.9 · 0.15 − 0.1501248) /
    (1 − 0.81) = −0.0796042, the mean square (0.999 · 0.00225 + 0.00225375) / (1 − 0.998001) =
    2.251875, S = −0.1 + 0.1 · 0.0796042 / 1.500625 = −0.0946953 and σ(S) = 0.476344.
    """
    criterion, weight = SoftMovement(penalty=4.0, rate=0.1), torch.tensor([2.0, 0.0])
    state = criterion.init_state(weight)
    criterion.observe(weight, torch.tensor([0.5, 0.0]), state)
    assert float(criterion(weight, state)[0]) == pytest.approx(0.475021, abs=1e-6)
    criterion.observe(weight, torch.tensor([-1.0, 0.0]), state)
    assert float(criterion(weight, state)[0]) == pytest.approx(0.476344, abs=2e-6)


def test_soft_movement_larger_penalty_prunes_more():
    def sparsity(penalty):
        weight = nn.Parameter(START[0].clone())
        pruner = Pruner(
            {"weight": weight},
            Schedule(final=0.5),
            total_steps=STEPS,
            criterion=SoftMovement(rate=RATE, penalty=penalty),
            allocation=Threshold(),
        )
        optimizer = torch.optim.SGD([weight], lr=LEARNING_RATE)
        pruner.attach(optimizer)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss_of([weight, START[1]], step).backward()
            optimizer.step()
        return pruner.sparsity

    found = [sparsity(penalty) for penalty in (0.0, 1.0, 1000.0)]
    assert found == sorted(found)
    assert found[0] < found[-1] == 47 / 48  # ⌊0.005 · 48⌋ + 1 stays
