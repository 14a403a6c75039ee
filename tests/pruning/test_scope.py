import pytest
import torch
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning.chosen_scope import default_scope
from kd_prune.pruning.report import SparsityReport
from kd_prune.pruning.scope import Scope, named_parameters


def encoder():
    """Names as in a small encoder with a head."""
    return nn.ModuleDict(
        {
            "embeddings": nn.Embedding(5, 4),
            "layer": nn.ModuleList(
                nn.ModuleDict({"query": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}) for _ in range(2)
            ),
            "classifier": nn.Linear(4, 2),
        }
    )


QUERIES = ["layer.0.query.weight", "layer.1.query.weight"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*"], [], ["embeddings.weight", *QUERIES, "classifier.weight"]),
        (["*.weight"], [], ["embeddings.weight", *QUERIES, "classifier.weight"]),
        (["layer.*"], [], QUERIES),
        (["layer.*.query.weight"], [], QUERIES),
        (["layer.*.query.*"], [], QUERIES),
        (["*"], ["embeddings.*", "classifier.*"], QUERIES),
        (["*.weight"], ["*"], None),
        (["layer.1.*", "layer.0.*"], [], QUERIES),
        (["layer.[1-9].*"], [], QUERIES[1:]),
        (["layer.?.query.weight"], ["layer.1.*"], QUERIES[:1]),
        (["layer.0.query.weight"], [], QUERIES[:1]),
        (["*.bias"], [], None),
        (["*norm.weight"], [], None),
    ],
)
def test_scope_select(include, exclude, expected):
    model = encoder()
    scope = Scope(include=include, exclude=exclude)
    if expected is None:
        with pytest.raises(ConfigError, match="leaves no floating-point parameter of two"):
            scope.select(model)
        return
    selected = scope.select(model)
    assert list(selected) == expected
    for name, parameter in selected.items():
        assert parameter is model.get_parameter(name)


@pytest.mark.parametrize(
    ("include", "exclude", "pattern"),
    [
        (["*", "pooler.*"], [], "pooler"),
        (["*"], ["pooler.*"], "pooler"),
        (["query.weight"], [], "query.weight"),
        (["LAYER.*"], [], "LAYER"),
        (["layer.*.query"], [], "query"),
    ],
)
def test_scope_pattern_without_match_raises(include, exclude, pattern):
    with pytest.raises(ConfigError, match=rf"{pattern}.*matches no parameter.*embeddings.weight"):
        Scope(include=include, exclude=exclude).select(encoder())


def test_optional_pattern_may_match_nothing():
    scope = Scope(include=["layer.*.weight"], optional=["pooler.*", "*.dense.weight"])
    alone = Scope(include=["layer.*.weight"]).select(encoder())
    more = Scope(include=["layer.*.weight", "embeddings.weight"]).select(encoder())
    assert list(scope.select(encoder())) == list(alone)
    scope = Scope(include=["layer.*.weight"], optional=["embeddings.*"])
    assert list(scope.select(encoder())) == list(more)
    assert scope.as_code() == 'Scope(include=["layer.*.weight"], optional=["embeddings.*"])'


@pytest.mark.parametrize("argument", ["include", "exclude", "optional"])
def test_scope_string_raises(argument):
    with pytest.raises(TypeError, match=rf"{argument}='\*.weight': expected a list"):
        Scope(**{"include": ["*"], argument: "*.weight"})


def tied():
    model = nn.ModuleDict({"inner": nn.Linear(4, 4), "outer": nn.Linear(4, 4)})
    model["outer"].weight = model["inner"].weight
    return model


@pytest.mark.parametrize("include", [["inner.*"], ["outer.*"]])
def test_scope_tied_to_excluded_weight_raises(include):
    with pytest.raises(ConfigError, match=r"tied to (inner|outer).weight, which is not"):
        Scope(include=include).select(tied())


def test_scope_tied_weights_are_selected_once():
    assert list(Scope(include=["*"]).select(tied())) == ["inner.weight"]


def test_scope_selects_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert list(Scope(include=["*"]).select(model)) == ["0.weight"]
    assert model[0].weight.shape == torch.Size([4, 3, 3, 3])


def test_scope_lazy_layer_raises():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4), nn.Linear(4, 2))
    for choose in (default_scope, Scope(include=["1.weight"]).select):
        with pytest.raises(ValueError, match=r"^0\.weight: belongs to a lazy layer .*run one"):
            choose(model)
    model(torch.ones(1, 3))
    assert list(default_scope(model).included) == ["0.weight", "1.weight"]


class Projection(nn.Module):
    """Marked like an objective, whose parameters train with the student and are never pruned."""

    never_pruned = True

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)


def with_projection():
    return nn.ModuleDict(
        {"first": nn.Linear(4, 4), "projection": Projection(), "last": nn.Linear(4, 4)}
    )


def test_named_parameters_never_pruned_module_is_skipped():
    model = with_projection()
    expected = ["first.weight", "first.bias", "last.weight", "last.bias"]
    assert list(named_parameters(model)) == expected
    assert list(named_parameters(torch.compile(model, backend="eager"))) == expected
    assert not named_parameters(model["projection"])


def test_scope_never_pruned_module_is_not_selected():
    model = with_projection()
    assert list(Scope(include=["*.weight"]).select(model)) == ["first.weight", "last.weight"]
    with pytest.raises(ConfigError, match="matches no parameter"):
        Scope(include=["projection.*"]).select(model)
    scope = default_scope(model)
    assert (list(scope.included), list(scope.excluded)) == (["first.weight"], ["last.weight"])


def test_scope_weight_shared_with_never_pruned_module_is_not_selected():
    model = with_projection()
    model["first"].weight = model["projection"].inner.weight
    assert list(Scope(include=["*.weight"]).select(model)) == ["last.weight"]


def test_never_pruned_false_is_pruned():
    class Ordinary(Projection):
        never_pruned = False

    model = nn.ModuleDict({"first": Ordinary(), "last": nn.Linear(4, 4)})
    assert list(default_scope(model).included) == ["first.inner.weight"]


def test_sparsity_report_never_pruned_module_does_not_count():
    assert SparsityReport.count(with_projection(), ["first.weight"]).parameters == 40
