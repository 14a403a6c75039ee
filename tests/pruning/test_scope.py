import pytest
import torch
from torch import nn

from kd_prune.pruning.scope import Scope, default_scope


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
def test_select(include, exclude, expected):
    model = encoder()
    scope = Scope(include=include, exclude=exclude)
    if expected is None:
        with pytest.raises(ValueError, match="leaves no floating-point parameter of two"):
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
def test_a_pattern_without_a_match_raises(include, exclude, pattern):
    with pytest.raises(ValueError, match=rf"{pattern}.*matches no parameter.*embeddings.weight"):
        Scope(include=include, exclude=exclude).select(encoder())


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_lone_string_raises(argument):
    with pytest.raises(TypeError, match=rf"{argument}='\*.weight': expected a list"):
        Scope(**{"include": ["*"], argument: "*.weight"})


def tied():
    model = nn.ModuleDict({"inner": nn.Linear(4, 4), "outer": nn.Linear(4, 4)})
    model["outer"].weight = model["inner"].weight
    return model


@pytest.mark.parametrize("include", [["inner.*"], ["outer.*"]])
def test_weights_tied_across_the_boundary_raise(include):
    with pytest.raises(ValueError, match=r"tied to (inner|outer).weight, which is not"):
        Scope(include=include).select(tied())


def test_tied_weights_in_scope_count_once():
    assert list(Scope(include=["*"]).select(tied())) == ["inner.weight"]


def test_convolutions_are_in():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert list(Scope(include=["*"]).select(model)) == ["0.weight"]
    assert model[0].weight.shape == torch.Size([4, 3, 3, 3])


class Tied(nn.Module):
    """Embedding and head share a weight, as do two layers; a parameter of the module's own."""

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
    assert list(scope.taken) == ["first.weight", "last.weight"]
    assert scope.left == {
        "embed.weight": "tied to no layer",
        "positions": "no layer's weight",
        "frozen.weight": "does not train",
        "head.weight": "tied to no layer",
    }


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_default_scope_knows_layers_by_what_they_are():
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
    assert list(scope.taken) == [
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
    assert set(scope.left) == {
        "norm.weight",
        "norm.bias",
        "attention.bias_k",
        "attention.bias_v",
        "halves.weight_g",  # an emptied row of it would be divided by its length, 0
        "halves.weight_v",
        "rnn.weight_hh_l0_g",
        "rnn.weight_hh_l0_v",
        "complex.weight",
        "empty.weight",
        "embed.weight",
        "out.weight",
    }
    assert scope.left["complex.weight"] == "of complex64"
    assert Scope(include=["*.weight"], exclude=["norm*", "embed*"]).select(model).keys() == {
        "conv.weight",
        "up.weight",
        "attention.out_proj.weight",
        "bilinear.weight",
        "out.weight",
    }


def test_a_lazy_layer_has_to_be_made_first():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4), nn.Linear(4, 2))
    for choose in (default_scope, Scope(include=["1.weight"]).select):
        with pytest.raises(ValueError, match=r"^0\.weight: a lazy layer's, .*run one through"):
            choose(model)
    model(torch.ones(1, 3))
    assert list(default_scope(model).taken) == ["0.weight", "1.weight"]


def test_default_scope_finds_a_head_for_each_network():
    model = nn.ModuleDict({n: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for n in "ab"})
    scope = default_scope(model, [list(model[n].parameters()) for n in "ab"])
    assert list(scope.taken) == ["a.0.weight", "b.0.weight"]
    only_a = default_scope(model, [list(model["a"].parameters())])
    assert list(only_a.taken) == ["a.0.weight"]
    assert only_a.left["b.1.weight"] == "does not train"


def test_default_scope_with_nothing_but_a_head():
    with pytest.raises(
        ValueError, match=r"no layer to prune \(left: weight \(output head\)\); say what"
    ):
        default_scope(nn.Linear(3, 3))
