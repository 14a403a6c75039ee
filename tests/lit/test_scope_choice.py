"""SparsityCallback's scope: output heads by the module's example, what does not train, norms."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from kd_prune.errors import ConfigError
from kd_prune.lit import SparsityCallback
from kd_prune.pruning import Scope, Wanda

from .networks import UserModule, make_trainer, mlp, zeros_per_tensor


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(16, 3)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 16))
        self.critic = nn.Linear(16, 1)

    def forward(self, x):
        hidden = self.body(x).relu()
        return self.actor(hidden) + self.critic(hidden)


class WithForward(UserModule):
    def __init__(self, network, example=None):
        super().__init__(network, (8,))
        self.example_input_array = example

    def forward(self, x):
        return self.network(x)


HEADS = ["network.actor.weight", "network.critic.weight"]


@pytest.mark.parametrize(
    "example", [torch.ones(2, 8), (torch.ones(2, 8),), {"x": torch.ones(2, 8)}]
)
def test_all_heads_stay_dense_where_the_module_has_an_example(tmp_path, capsys, example):
    module, pruning = WithForward(ActorCritic(), example), SparsityCallback(0.9, updates=4)
    plan = pruning.preview(make_trainer(tmp_path), module, module.batches())
    assert plan.excluded == dict.fromkeys(HEADS, "output head (no layer takes its output)")
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert list(zeros_per_tensor(module, pruning)) == [
        "network.body.0.weight",
        "network.body.2.weight",
    ]
    assert (
        "network.actor.weight: output head (no layer takes its output)" in capsys.readouterr().out
    )


def test_the_last_layer_is_meant_and_named_without_an_example(tmp_path, capsys):
    module, pruning = WithForward(ActorCritic()), SparsityCallback(0.9, updates=4)
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    printed = capsys.readouterr().out
    assert "network.critic.weight: output head (last layer)" in printed
    assert "Only the last layer was taken for an output head. If the module has several" in printed


def test_an_example_that_fails_is_named_and_the_fit_goes_on(tmp_path, capsys):
    module = WithForward(ActorCritic(), torch.ones(2, 5))
    pruning = SparsityCallback(0.9, updates=4)
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert "network.actor.weight" in pruning.pruner.parameters
    assert "No forward pass could be traced: RuntimeError: " in capsys.readouterr().out


def trained(tmp_path, example, **settings):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
    module = WithForward(network, example)
    make_trainer(tmp_path, SparsityCallback(0.9, updates=4), **settings).fit(
        module, module.batches()
    )
    return module.state_dict()


def test_an_example_does_not_change_the_run(tmp_path):
    plain, traced = (trained(tmp_path, example) for example in (None, torch.ones(2, 8)))
    assert all(torch.equal(value, traced[name]) for name, value in plain.items())


def test_a_resumed_run_finds_the_same_heads(tmp_path):
    names = []
    for epochs, path in ((1, None), (2, tmp_path / "first.ckpt")):
        module, pruning = WithForward(ActorCritic(), torch.ones(2, 8)), SparsityCallback(0.9)
        trainer = make_trainer(tmp_path, pruning, max_epochs=epochs)
        trainer.fit(module, module.batches(), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "first.ckpt")
        names.append(list(pruning.pruner.parameters))
    assert names == [["network.body.0.weight", "network.body.2.weight"]] * 2


class FrozenTeacher(UserModule):
    def __init__(self):
        super().__init__(mlp(), (8,))
        self.teacher = mlp().requires_grad_(False)


def test_scope_of_a_frozen_teacher_is_refused_unless_asked_for(tmp_path, capsys):
    module = FrozenTeacher()
    before = [p.clone() for p in module.teacher.parameters()]
    fit = make_trainer(tmp_path, SparsityCallback(0.9, scope=Scope(include=["*.weight"]))).fit
    message = r"^scope: teacher.0.weight, .* do not train .*; exclude \[\"teacher.\*.weight\"\], or"
    with pytest.raises(ConfigError, match=message):
        fit(module, module.batches())
    assert all(torch.equal(p, b) for p, b in zip(module.teacher.parameters(), before, strict=True))
    scope = Scope(include=["*.weight"], frozen=True)
    pruning = SparsityCallback(0.9, scope=scope)
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert "  teacher.2.weight: 16x16, 230 pruned, does not train" in capsys.readouterr().out
    assert zeros_per_tensor(module, pruning)["teacher.2.weight"] == (230, 256)


@pytest.mark.filterwarnings("ignore:no weight in scope is zero")
def test_scope_that_only_keeps_zeros_may_hold_frozen_weights(tmp_path):
    module = FrozenTeacher()
    pruning = SparsityCallback(None, scope=Scope(include=["*.weight"]))
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert "teacher.0.weight" in pruning.pruner.parameters


def test_the_printed_scope_copied_selects_the_same(tmp_path, capsys):
    module, pruning = FrozenTeacher(), SparsityCallback(0.9)
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "To choose otherwise" in x]
    scope = eval(line.partition("scope=")[2], {"Scope": Scope})  # noqa: S307  # as a user would
    copied, module = SparsityCallback(0.9, scope=scope), FrozenTeacher()
    make_trainer(tmp_path, copied).fit(module, module.batches())
    assert list(copied.pruner.parameters) == list(pruning.pruner.parameters)


def normed():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 16)), nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(16, 16)), nn.ReLU(),
        parametrizations.weight_norm(nn.Linear(16, 3)),
    )  # fmt: skip


@pytest.mark.parametrize("criterion", [None, Wanda()], ids=str)
def test_parametrized_network_is_pruned_through_its_parametrizations(tmp_path, criterion):
    module = UserModule(normed(), (8,))
    pruning = SparsityCallback(0.8, updates=4, **({"criterion": criterion} if criterion else {}))
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert list(zeros_per_tensor(module, pruning)) == [
        "network.0.parametrizations.weight.original1",
        "network.2.parametrizations.weight.original",
    ]
    for i, size in ((0, 128), (2, 256)):
        weight = module.network[i].weight
        assert int((weight == 0).sum()) == round(0.8 * size)
        assert weight.isfinite().all()


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_are_pruned_and_wanda_refuses_them(tmp_path, cell):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = cell(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            state = self.cell(x)
            return self.head(state[0] if isinstance(state, tuple) else state)

    module, pruning = UserModule(Unrolled(), (8,)), SparsityCallback(0.9, updates=4)
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    counts = zeros_per_tensor(module, pruning)
    assert list(counts) == ["network.cell.weight_ih", "network.cell.weight_hh"]
    assert all(zeros == round(0.9 * size) for zeros, size in counts.values())
    module = UserModule(Unrolled(), (8,))
    with pytest.raises(ConfigError, match="does not correspond to the weight's columns"):
        make_trainer(tmp_path, SparsityCallback(0.9, criterion=Wanda())).fit(
            module, module.batches()
        )


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_experts = 4
        self.experts = nn.Parameter(torch.randn(4, 16, 8) / 3)

    def forward(self, x):
        return torch.einsum("bi,eoi->bo", x, self.experts)


def test_experts_are_pruned_and_wanda_refuses_them(tmp_path):
    module = UserModule(nn.Sequential(Mixture(), nn.Linear(16, 3)), (8,))
    pruning = SparsityCallback(0.9, updates=4)
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    zeros = (module.network[0].experts == 0).sum((1, 2)).tolist()
    assert zeros == [round(0.9 * 128)] * 4
    module = UserModule(nn.Sequential(Mixture(), nn.Linear(16, 3)), (8,))
    with pytest.raises(ConfigError, match="does not correspond to the weight's columns"):
        make_trainer(tmp_path, SparsityCallback(0.9, criterion=Wanda())).fit(
            module, module.batches()
        )


@pytest.mark.parametrize("settings", [{"final": None}, {"final": 0.9, "keep_zeros": True}])
def test_zeros_outside_the_scope_that_will_be_lost_are_named(tmp_path, settings):
    module = UserModule(mlp(), (8,))
    with torch.no_grad():
        for layer in (0, 2, 3):
            module.network[layer].weight[:, ::2] = 0
    pruning = SparsityCallback(**settings)
    says = (
        r"zeros outside the scope are not kept: network\.3\.weight \(output head \(last layer\)\) "
        r"has 50%; .*with 'network\.3\.weight' in it"
    )
    with pytest.warns(UserWarning, match=says):
        make_trainer(tmp_path, pruning).fit(module, module.batches())


def test_new_weights_of_zeros_are_no_lost_zeros(tmp_path):
    module = UserModule(mlp(), (8,))
    nn.init.zeros_(module.network[3].weight)
    with torch.no_grad():
        module.network[0].weight[:, ::2] = 0
    make_trainer(tmp_path, SparsityCallback(None)).fit(module, module.batches())  # no warning
    assert (module.network[0].weight[:, ::2] == 0).all()
    assert (module.network[3].weight != 0).all()
