"""Weights that are zero before pruning begins: values like others, or pruned ones."""

import pytest
import torch
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning import Pruner, Schedule
from kd_prune.pruning.initial_zeros import InitialZerosWarning

from .toy import OPTIMIZERS, STEPS, make_model, make_pruner, run, weights_of

SAYS = r"weights that are zero at the start .* train, .*keep_zeros=True"


def identity(weight):
    nn.init.eye_(weight)


def sparse(weight):
    torch.manual_seed(0)
    nn.init.sparse_(weight, sparsity=0.9)


def widened(weight):
    weight[:, weight.shape[1] // 2 :] = 0


def make_pruned(sparsity):
    model = make_model()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights_of(model).values():
            order = torch.randperm(weight.numel(), generator=draw)
            weight.view(-1)[order[: round(sparsity * weight.numel())]] = 0.0
    return model


@pytest.mark.parametrize("initialize", [identity, sparse, widened])
def test_zeros_of_an_initialization_train_and_are_pruned_to_the_target(initialize):
    model = make_model()
    with torch.no_grad():
        initialize(model[0].weight)
    zeros = model[0].weight == 0
    pruner = make_pruner(model, Schedule(final=0.3))
    with pytest.warns(InitialZerosWarning, match=rf"^0\.weight \(0\.\d+\): {SAYS}"):
        run(model, pruner, OPTIMIZERS["adamw"](model.parameters()), range(1, STEPS + 1))
    for weight in weights_of(model).values():
        assert int((weight == 0).sum()) == round(0.3 * weight.numel())
    assert (model[0].weight[zeros] != 0).any()


def test_zeros_of_a_pruned_model_are_kept_where_asked():
    model = make_pruned(0.5)
    zeros = {name: weight == 0 for name, weight in weights_of(model).items()}
    pruner = make_pruner(model, keep_zeros=True)
    run(model, pruner, OPTIMIZERS["adamw"](model.parameters()), range(1, STEPS + 1))
    for name, weight in weights_of(model).items():
        assert not weight[zeros[name]].any()


@pytest.mark.parametrize(("found", "kept"), [(0.5, True), (0.7, True), (0.4, False)])
def test_zeros_are_kept_in_a_scope_at_the_start_of_the_ramp(found, kept):
    model = make_pruned(found)
    pruned = sum(int((weight == 0).sum()) for weight in weights_of(model).values())
    pruner = make_pruner(model, Schedule(final=0.9, initial=0.5))
    assert sum(pruner.expected_pruned.values()) == (pruned if kept else 0)
    if kept:
        pruner.update(1)
    else:
        with pytest.warns(InitialZerosWarning, match=SAYS):
            pruner.update(1)


def test_identity_does_not_make_a_dense_scope_a_pruned_one():
    """Of 110 weights 70 are zero, but the other tensor has none; the user decides."""
    model = make_model()
    nn.init.eye_(model[0].weight)
    schedule = Schedule(final=0.9, initial=0.3)
    assert sum(make_pruner(model, schedule).expected_pruned.values()) == 70
    assert sum(make_pruner(model, schedule, keep_zeros=False).expected_pruned.values()) == 0


def test_few_zeros_compete_without_a_warning():
    model = make_model()
    with torch.no_grad():
        model[0].weight[0] = 0.0
    pruner = make_pruner(model)
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), [1])
    assert (model[0].weight[0] != 0).any()


def test_resumed_masks_leave_nothing_to_warn_of():
    model = make_model()
    pruner = make_pruner(model)
    run(model, pruner, OPTIMIZERS["sgd"](model.parameters()), range(1, STEPS // 2))
    assert 0.3 < pruner.sparsity < 0.9
    resumed = make_pruner(model)
    resumed.load_state_dict(pruner.state_dict())
    run(model, resumed, OPTIMIZERS["sgd"](model.parameters()), range(STEPS // 2, STEPS + 1))
    assert resumed.sparsity == 99 / 110


@pytest.mark.parametrize(
    ("schedule", "keep_zeros", "says"),
    [
        (Schedule(final=0.9), "yes", "keep_zeros='yes': expected True, False or None"),
        (None, False, "keep_zeros=false: without a schedule .* zeros are kept"),
    ],
)
def test_keep_zeros_that_cannot_work_is_refused(schedule, keep_zeros, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        Pruner(weights_of(make_model()), schedule, total_steps=STEPS, keep_zeros=keep_zeros)
