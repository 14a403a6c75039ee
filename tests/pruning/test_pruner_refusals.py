"""Arguments and values that a Pruner refuses."""

import copy
import re

import pytest
import torch
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning.allocation import Global
from kd_prune.pruning.granularity.structured import Rows
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.schedule import Schedule

from .toy import PLAN, SCHEDULE, STEPS, make_model, make_pruner


@pytest.mark.parametrize("allocation", [None, Global()])
def test_update_nan_weight_raises_with_its_name(allocation):
    model = make_model()
    pruner = make_pruner(model, **({"allocation": allocation} if allocation else {}))
    with torch.no_grad():
        model[2].weight[1, 2] = float("nan")
    assert not pruner.update(1)
    with pytest.raises(
        ValueError, match=rf"2\.weight contains NaN at step {min(PLAN)}, .* diverged"
    ):
        pruner.update(min(PLAN))
    assert pruner.target == 0.0
    assert all(mask.all() for mask in pruner.masks.values())  # those of earlier tensors too


def test_pruner_unreachable_final_raises_at_construction():
    with pytest.raises(ConfigError, match=r"ceiling=0.85: is below the sparsity asked for, 0.9"):
        make_pruner(make_model(), allocation=Global(ceiling=0.85))


def test_pruner_ramp_without_step_raises_at_construction():
    with pytest.raises(ConfigError, match="no step of this run of 1"):
        make_pruner(make_model(), Schedule(final=0.9, end=0.4), total_steps=1)


def test_rigl_with_groups_raises():
    with pytest.raises(
        ConfigError, match=r"regrow=RigL.*granularity=unstructured only, not Rows.*regrow=true"
    ):
        make_pruner(make_model(), granularity=Rows(), regrow=RigL())


def nan_of_one(weight):
    return weight / 0 if weight.shape == (3, 11) else weight.abs()


def of_rows(weight):
    return weight.abs().sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"criterion": nan_of_one}, r"nan_of_one.*: gives NaN for 2\.weight"),
        (
            {"granularity": lambda scores, count, kept: kept[:1]},
            r"mask of shape \(1, 7\) for 0\.weight",
        ),
    ],
)
def test_update_invalid_scores_or_masks_raise_and_change_nothing(options, says):
    model = make_model()
    nn.init.zeros_(model[2].weight[0])
    pruner = make_pruner(model, keep_zeros=True, **options)
    before = copy.deepcopy(pruner.state_dict())
    with pytest.raises(ValueError, match=says):
        pruner.update(STEPS)
    after = pruner.state_dict()
    assert all(torch.equal(after["masks"][name], mask) for name, mask in before["masks"].items())
    assert after["updated_at"] == before["updated_at"] == 0


@pytest.mark.parametrize("count", [69.3, 78, -1, None])
def test_pruner_invalid_counts_raise_at_construction(count):
    says = r"allocation=.*: gave no integer from 0 to the 77 weights of 0\.weight"
    with pytest.raises(ConfigError, match=says):
        make_pruner(
            make_model(),
            allocation=lambda masks, score, sparsity: {"0.weight": count, "2.weight": 30},
        )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"criterion": "movement"}, "criterion='movement': expected a function or an object"),
        (
            {"granularity": Rows},
            "granularity=Rows: expected an object, not its class; write Rows()",
        ),
        ({"regrow": "yes"}, "regrow='yes': expected True, False or RigL()"),
        ({"schedule": 0.9}, "schedule=0.9: expected a Schedule, as Schedule(final=0.9)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_pruner_string_or_class_argument_raises(options, says):
    with pytest.raises(TypeError, match=f"^{re.escape(says)}"):
        make_pruner(make_model(), **options)


def test_pruner_model_as_parameters_raises():
    with pytest.raises(
        TypeError, match=r"parameters=Sequential: .* default_scope\(model\)\.included"
    ):
        Pruner(make_model(), SCHEDULE, total_steps=STEPS)


def of_weight_and_gradient(weight, gradient):
    return weight * gradient


@pytest.mark.parametrize(
    ("criterion", "says"),
    [
        (of_rows, r"scores of shape \(11, 1\) for 0\.weight; .*\(11, 7\)"),
        (
            of_weight_and_gradient,
            r"cannot score a weight \(.*'gradient'\); a function gets",
        ),
    ],
)
def test_criterion_that_cannot_score_is_refused_at_construction(criterion, says):
    with pytest.raises(ConfigError, match=rf"criterion=.*{criterion.__name__}: .*{says}"):
        make_pruner(make_model(), criterion=criterion)
