"""layer_weights: parametrized weights are tried out with zeros, experts are told apart."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from kd_prune.errors import ConfigError
from kd_prune.pruning.layers import computed_name, layer_weights
from kd_prune.pruning.scope import Scope


def found(layer):
    """Name → weight of the parameters of one layer."""
    weights = layer_weights(layer)
    return {n: weights[id(p)] for n, p in layer.named_parameters() if id(p) in weights}


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(3, 4).triu())

    def forward(self, weight):
        return weight * self.mask


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


class Cut(nn.Module):
    def forward(self, weight):
        return weight[:, :2]


class Broken(nn.Module):
    def forward(self, weight):
        if (weight == 0).any():
            raise ArithmeticError("zeros")
        return weight


def test_weight_norm_is_pruned_by_its_direction():
    weights = found(parametrizations.weight_norm(nn.Linear(4, 3)))
    length, direction = weights.values()
    assert list(weights) == [f"parametrizations.weight.original{i}" for i in (0, 1)]
    assert (length.is_scale, direction.is_scale) == (True, False)
    assert (direction.divided_by_norm, direction.norm_dim) == (True, 0)
    assert computed_name("a.parametrizations.weight.original1", direction) == "a.weight"


@pytest.mark.parametrize(
    ("make", "dim"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(4, 3), dim=1), 1),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 3), dim=None), None),
        (lambda: parametrizations.weight_norm(nn.Conv1d(4, 3, 2)), 0),
        (lambda: parametrizations.weight_norm(nn.Linear(1, 3)), 0),
        (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), None),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 3)), 0),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 3), dim=1), 1),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 3), dim=None), None),
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_norm_is_divided_by_along_its_dimension(make, dim):
    torch.manual_seed(0)
    layer = make()
    (weight,) = [w for w in found(layer).values() if not w.is_scale]
    assert weight.unprunable is None
    assert (weight.name, weight.divided_by_norm, weight.norm_dim) == ("weight", True, dim)
    with torch.no_grad():  # a slice without weights is what it must not have
        (weight.parameter if dim is None else weight.parameter.select(dim, 0)).zero_()
    x = torch.ones(1, *([4, 5] if isinstance(layer, nn.Conv1d) else [layer.in_features]))
    assert layer(x).isnan().any()


def test_own_parametrization_that_keeps_zeros_is_pruned():
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", Masked())
    (weight,) = found(layer).values()
    assert (weight.unprunable, weight.divided_by_norm) == (None, False)


@pytest.mark.parametrize(
    ("parametrization", "reason"),
    [
        (Symmetric(), "zeros in it are no zeros of the weight that Symmetric makes of it"),
        (Broken(), "Broken cannot be tried out with zeros in it (ArithmeticError: zeros)"),
    ],
)
def test_parametrization_that_loses_zeros_is_refused(parametrization, reason):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    parametrize.register_parametrization(model[0], "weight", parametrization)
    (weight,) = found(model[0]).values()
    assert weight.unprunable == reason
    name = "0.parametrizations.weight.original"
    for include in (["*"], ["0.weight"], [name]):
        with pytest.raises(ConfigError) as error:
            Scope(include=include).select(model)
        assert error.value.expected == f"{name} cannot be pruned: {reason}"
    assert "exclude '0.weight'" in error.value.hint
    assert list(Scope(include=["*"], exclude=["0.weight"]).select(model)) == ["1.weight"]


def test_parametrization_that_changes_the_shape_is_refused():
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", Cut(), unsafe=True)
    assert "Cut" in next(iter(found(layer).values())).unprunable


@pytest.mark.parametrize("training", [True, False])
def test_trial_changes_nothing(training):
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(4, 3)).train(training)
    before, state = {n: v.clone() for n, v in layer.state_dict().items()}, torch.get_rng_state()
    layer_weights(layer)
    assert (torch.get_rng_state() == state).all()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert {module.training for module in layer.modules()} == {training}


def test_scope_selects_parametrized_weights_by_the_name_of_the_weight():
    model = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(3)))
    selected = Scope(include=["*.weight"], exclude=["2.weight"]).select(model)
    assert list(selected) == [f"{i}.parametrizations.weight.original1" for i in (0, 1)]
    assert list(Scope(include=["*"]).select(model)) == [
        *selected,
        "2.parametrizations.weight.original1",
    ]


class Experts(nn.Module):
    def __init__(self, *shapes, **attributes):
        super().__init__()
        vars(self).update(attributes)
        for i, shape in enumerate(shapes):
            self.register_parameter(f"w{i}", nn.Parameter(torch.zeros(shape)))


class Bank(Experts):
    pass


@pytest.mark.parametrize(
    ("module", "transposed"),
    [
        (Experts((3, 10, 4), (3, 4, 5)), False),
        (Experts((3, 4, 10), (3, 5, 4)), True),
        (Experts((3, 4, 5), (3, 5, 4)), None),  # either is possible
        (Experts((3, 4, 4), (3, 4, 4), is_transposed=True), True),
        (Experts((3, 4, 5)), False),
        (Bank((3, 10, 4), (3, 4, 5), num_experts=3), False),
    ],
)
def test_experts_are_matrices_of_their_own(module, transposed):
    weights = found(module).values()
    assert len(weights) == len(list(module.parameters()))
    assert all(weight.experts for weight in weights)
    assert transposed is None or {weight.transposed for weight in weights} == {transposed}


@pytest.mark.parametrize(
    "module",
    [Bank((3, 4, 5)), Bank((3, 4, 5), num_experts=4), Experts((1, 4, 5)), Experts((3, 4))],
)
def test_other_tensors_of_three_dimensions_are_no_experts(module):
    assert not found(module)
