import pytest
import torch
from torch import nn

from kd_prune.pruning.scope import Scope


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
        with pytest.raises(ValueError, match="leaves no parameter of two or more dimensions"):
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
