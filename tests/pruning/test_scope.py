import pytest
import torch
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning.report import SparsityReport
from kd_prune.pruning.scope import Scope, default_scope, named_parameters


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


@pytest.mark.parametrize("argument", ["include", "exclude"])
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


class Tied(nn.Module):
    """A weight shared by embedding and head, one by two layers, and a direct parameter."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.positions = nn.Parameter(torch.ones(3, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.last = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6)
        self.head.weight = self.embed.weight


def test_default_scope_with_tied_and_frozen_weights():
    scope = default_scope(Tied())
    assert list(scope.included) == ["first.weight", "last.weight"]
    assert scope.excluded == {
        "embed.weight": "tied to another module",
        "positions": "no layer's weight",
        "frozen.weight": "not trained",
        "head.weight": "tied to another module",
    }


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_default_scope_selects_layers_by_class():
    empty = nn.Linear(4, 1)
    empty.weight = nn.Parameter(torch.empty(0, 4))
    model = nn.ModuleDict(
        {
            "conv": nn.Conv1d(2, 4, 3),
            "up": nn.ConvTranspose2d(4, 4, 2),
            "norm": nn.LayerNorm([4, 4]),
            "lstm": nn.LSTM(4, 4, proj_size=2),
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "halves": torch.nn.utils.weight_norm(nn.Linear(4, 4)),
            "rnn": torch.nn.utils.weight_norm(nn.RNN(4, 4), "weight_hh_l0"),
            "complex": nn.Linear(4, 4, dtype=torch.complex64),
            "empty": empty,
            "bilinear": nn.Bilinear(4, 4, 4),
            "embed": nn.EmbeddingBag(5, 4),
            "out": nn.Linear(4, 2),
        }
    )
    scope = default_scope(model)
    assert list(scope.included) == [
        "conv.weight",
        "up.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "lstm.weight_hr_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "rnn.weight_ih_l0",
        "bilinear.weight",
    ]
    assert set(scope.excluded) == {
        "norm.weight",
        "norm.bias",
        "attention.bias_k",
        "attention.bias_v",
        "halves.weight_g",  # divided by the norm of a row: 0 if pruned
        "halves.weight_v",
        "rnn.weight_hh_l0_g",
        "rnn.weight_hh_l0_v",
        "complex.weight",
        "empty.weight",
        "embed.weight",
        "out.weight",
    }
    assert scope.excluded["complex.weight"] == "of complex64"
    assert Scope(include=["*.weight"], exclude=["norm*", "embed*"]).select(model).keys() == {
        "conv.weight",
        "up.weight",
        "attention.out_proj.weight",
        "bilinear.weight",
        "out.weight",
    }


def test_scope_lazy_layer_raises():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4), nn.Linear(4, 2))
    for choose in (default_scope, Scope(include=["1.weight"]).select):
        with pytest.raises(ValueError, match=r"^0\.weight: belongs to a lazy layer .*run one"):
            choose(model)
    model(torch.ones(1, 3))
    assert list(default_scope(model).included) == ["0.weight", "1.weight"]


def test_default_scope_excludes_head_of_each_network():
    model = nn.ModuleDict({n: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for n in "ab"})
    scope = default_scope(model, [list(model[n].parameters()) for n in "ab"])
    assert list(scope.included) == ["a.0.weight", "b.0.weight"]
    only_a = default_scope(model, [list(model["a"].parameters())])
    assert list(only_a.included) == ["a.0.weight"]
    assert only_a.excluded["b.1.weight"] == "not trained"


def test_default_scope_only_head_raises():
    message = r"^scope: no layer to prune found \(excluded: weight \(output head\)\); say what"
    with pytest.raises(ConfigError, match=message):
        default_scope(nn.Linear(3, 3))


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
