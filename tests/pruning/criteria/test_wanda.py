"""Wanda."""

import math

import pytest
import torch
from torch import nn

from kd_prune.pruning.criteria import (
    Wanda,
)

from .steps import score_of, seeded


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Linear(4, 3), (7, 4)),
        (nn.Linear(4, 3), (2, 5, 4)),
        (nn.Conv1d(4, 3, 2), (2, 4, 9)),
        (nn.Conv2d(4, 3, (2, 3)), (2, 4, 5, 6)),
        (nn.Conv3d(4, 3, 2), (2, 4, 3, 4, 5)),
    ],
    ids=str,
)
def test_wanda_uses_the_norm_of_every_input_feature(layer, size):
    batch = torch.randn(*size, generator=seeded(0))
    weight = layer.weight.detach()
    expected = torch.empty_like(weight)
    for feature in range(4):
        values = batch[..., feature] if weight.ndim == 2 else batch[:, feature]
        size_of = math.sqrt(sum(value**2 for value in values.flatten().tolist()) / values.numel())
        expected[:, feature] = weight[:, feature].abs() * size_of
    torch.testing.assert_close(score_of(Wanda(), [(weight, batch)]), expected)


def test_wanda_does_not_depend_on_batching():
    weight, rows = torch.randn(3, 4), torch.randn(12, 4)
    parts = [(weight, part) for part in (rows[:1], rows[1:1], rows[1:9].view(2, 4, 4), rows[9:])]
    torch.testing.assert_close(score_of(Wanda(), parts), score_of(Wanda(), [(weight, rows)]))


def test_wanda_without_input_or_after_update_is_magnitude():
    criterion, weight = Wanda(), torch.randn(3, 4)
    state = criterion.init_state(weight)
    assert torch.equal(criterion(weight, state), weight.abs())
    criterion.observe(weight, torch.randn(5, 4), state)
    assert not torch.equal(criterion(weight, state), weight.abs())
    criterion.after_update(state)
    assert torch.equal(criterion(weight, state), weight.abs())


def test_wanda_unsuitable_shape_raises():
    criterion = Wanda()
    with pytest.raises(
        ValueError, match=r"^criterion=Wanda\(\): weight of shape \(3,\): expected \(out, in\)"
    ):
        criterion.init_state(torch.ones(3))
    grouped = nn.Conv2d(4, 4, 3, groups=2).weight
    with pytest.raises(ValueError, match=r"\(2, 4, 5, 5\): expected 2 features on axis 1"):
        criterion.observe(grouped, torch.ones(2, 4, 5, 5), criterion.init_state(grouped))
    conv = torch.ones(3, 4, 2)
    with pytest.raises(ValueError, match=r"\(4,\): expected 4 features on axis 1"):
        criterion.observe(conv, torch.ones(4), criterion.init_state(conv))
