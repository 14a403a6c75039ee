"""default_scope, given_scope: what is chosen, what stays dense and with which reason."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from kd_prune.errors import ConfigError
from kd_prune.pruning.chosen_scope import default_scope, given_scope
from kd_prune.pruning.scope import Scope


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
        "embed.weight": "embedding",
        "positions": "no layer's weight",
        "frozen.weight": "not trained",
        "head.weight": "tied to an embedding",
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
        "halves.weight_v",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0_v",
        "bilinear.weight",
    ]
    assert set(scope.excluded) == {
        "norm.weight",
        "norm.bias",
        "attention.bias_k",
        "attention.bias_v",
        "halves.weight_g",
        "rnn.weight_hh_l0_g",
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
        "halves.weight_v",
        "bilinear.weight",
        "out.weight",
    }


def test_default_scope_excludes_head_of_each_network():
    model = nn.ModuleDict({n: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for n in "ab"})
    scope = default_scope(model, [list(model[n].parameters()) for n in "ab"])
    assert list(scope.included) == ["a.0.weight", "b.0.weight"]
    only_a = default_scope(model, [list(model["a"].parameters())])
    assert list(only_a.included) == ["a.0.weight"]
    assert only_a.excluded["b.1.weight"] == "not trained"


def test_default_scope_of_optimizers_that_share_layers_has_one_head():
    """One optimizer for matrices and one for vectors, as with Muon."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    matrices = [p for p in model[:3].parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    scope = default_scope(model, [matrices, others])
    assert scope.excluded == {"3.weight": "output head (last layer)"}


def test_default_scope_only_head_raises():
    message = (
        "scope: no layer to prune found (excluded: weight (output head (last layer))); say what "
        'may be pruned, for example Scope(include=["weight"])'
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        default_scope(nn.Linear(3, 3))


class Experts(nn.Module):
    """The layout of transformers: (expert, output, input), beside a router held directly."""

    def __init__(self):
        super().__init__()
        self.num_experts = 3
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))
        self.down_proj = nn.Parameter(torch.randn(3, 4, 4))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 4))


def test_default_scope_takes_cells_and_experts():
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTMCell(4, 4),
            "gru": nn.GRUCell(4, 4),
            "rnn": nn.RNNCell(4, 4),
            "experts": Experts(),
            "out": nn.Linear(4, 2),
        }
    )
    scope = default_scope(model)
    cells = [f"{cell}.weight_{kind}" for cell in ("lstm", "gru", "rnn") for kind in ("ih", "hh")]
    assert list(scope.included) == [*cells, "experts.gate_up_proj", "experts.down_proj"]
    assert scope.excluded == {
        "experts.gate_up_proj_bias": "no layer's weight",
        "experts.positions": "no layer's weight",
        "out.weight": "output head (last layer)",
    }


def test_default_scope_of_mixtral_leaves_embedding_router_and_head():
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(
        MixtralConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=4, vocab_size=10,
        )
    )  # fmt: skip
    assert set(default_scope(model).excluded) == {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate.weight",
        "lm_head.weight",
    }


class Lora(nn.Module):
    """A frozen layer with a pair of low rank, as homegrown code or PEFT arranges them."""

    def __init__(self, first="down", second="up"):
        super().__init__()
        self.base = nn.Linear(8, 6).requires_grad_(False)
        self.add_module(first, nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)}))
        self.add_module(second, nn.ModuleDict({"default": nn.Linear(2, 6, bias=False)}))


@pytest.mark.parametrize("names", [("down", "up"), ("lora_A", "lora_B")])
def test_default_scope_leaves_adapters_of_a_frozen_base(names):
    model = nn.ModuleDict(
        {"a": Lora(*names), "free": nn.Linear(6, 6), "b": Lora(*names), "out": nn.Linear(6, 2)}
    )
    scope = default_scope(model)
    assert list(scope.included) == ["free.weight"]
    for block in "ab":
        assert scope.excluded[f"{block}.base.weight"] == "not trained"
        for name in names:
            reason = scope.excluded[f"{block}.{name}.default.weight"]
            assert reason == "adapter of a frozen base; include it by name to prune it"
    assert scope.excluded["out.weight"].startswith("output head")
    included = Scope(include=[f"*.{name}.*" for name in names]).select(model)
    assert len(included) == 4


def test_default_scope_leaves_adapters_of_a_matrix_that_their_module_holds():
    class LoraLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8), requires_grad=False)
            self.lora_a, self.lora_b = nn.Linear(8, 2), nn.Linear(2, 6)

    scope = default_scope(nn.Sequential(LoraLinear(), nn.Linear(6, 6), nn.Linear(6, 2)))
    assert list(scope.included) == ["1.weight"]
    assert scope.excluded["0.lora_a.weight"].startswith("adapter of a frozen base")


def test_default_scope_takes_adapters_of_a_base_that_trains():
    model = nn.ModuleDict({"a": Lora().requires_grad_(True), "out": nn.Linear(6, 2)})
    assert len(default_scope(model).included) == 3


def test_default_scope_of_adapters_only_says_how_to_take_them():
    message = r"adapter of a frozen base.*Scope\(include=\[\"a.down.default.weight\", "
    with pytest.raises(ConfigError, match=message):
        default_scope(nn.ModuleDict({"a": Lora()}))


def test_default_scope_names_averages_and_copies():
    model = nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))})
    model["swa"] = torch.optim.swa_utils.AveragedModel(model["net"])
    model["target"] = copy.deepcopy(model["net"]).requires_grad_(False)
    model["ema_net"] = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    model["teacher"] = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    scope = default_scope(model)
    assert list(scope.included) == ["net.0.weight"]
    assert scope.excluded == {
        "net.1.weight": "output head (last layer)",
        "swa.module.0.weight": "moving average (AveragedModel)",
        "swa.module.1.weight": "moving average (AveragedModel)",
        "target.0.weight": "not trained, a copy of net.0.weight",
        "target.1.weight": "not trained, a copy of net.1.weight",
        "ema_net.0.weight": "not trained, by its name an average of net.0.weight",
        "ema_net.1.weight": "not trained, by its name an average of net.1.weight",
        "teacher.0.weight": "not trained",
        "teacher.1.weight": "not trained",
    }


MODELS = {
    "tied": Tied,
    "adapters": lambda: nn.ModuleDict({"a": Lora(), "x": nn.Linear(6, 6), "o": nn.Linear(6, 2)}),
    "experts": lambda: nn.Sequential(Experts(), nn.Linear(4, 2)),
    "numbered": lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(12))),
    "normed": lambda: nn.Sequential(*(weight_norm(nn.Linear(4, 4)) for _ in range(4))),
    "mixed": lambda: nn.Sequential(nn.Linear(4, 4), weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)),
    "frozen": lambda: nn.Sequential(
        nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4), nn.Linear(4, 2)
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_equivalent_scope_selects_the_same_parameters(kind):
    model = MODELS[kind]()
    scope = default_scope(model)
    copied = eval(scope.equivalent.as_code(), {"Scope": Scope})  # noqa: S307  # as a user would
    assert list(copied.select(model)) == list(scope.included)
    assert given_scope(scope.equivalent, model).untrained == []


@pytest.mark.parametrize("networks", [None, "some"])
def test_given_scope_refuses_what_does_not_train(networks):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    if networks:
        networks = [list(model[1].parameters()), list(model[2].parameters())]
    else:
        model[0].requires_grad_(False)
    message = r"^scope: 0.weight do not train .*; exclude \[\"0.weight\"\], or .*frozen=True"
    with pytest.raises(ConfigError, match=message):
        given_scope(Scope(include=["*.weight"]), model, networks)
    chosen = given_scope(Scope(include=["*.weight"], frozen=True), model, networks)
    assert list(chosen.included) == ["0.weight", "1.weight", "2.weight"]
    assert chosen.untrained == ["0.weight"]
    trained = given_scope(Scope(include=["*.weight"], exclude=["0.weight"]), model, networks)
    assert list(trained.included) == ["1.weight", "2.weight"]
