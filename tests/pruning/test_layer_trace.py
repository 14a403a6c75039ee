"""trace_layers: which layer takes whose output, and that nothing is changed by finding out."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from kd_prune.pruning.chosen_scope import default_scope
from kd_prune.pruning.layer_trace import trace_layers


class ActorCritic(nn.Module):
    """Two heads, the first of them defined before the body; a third layer is not in `forward`."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(8, 3)
        self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
        self.critic = nn.Linear(8, 1)
        self.training_only = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))

    def forward(self, x):
        hidden = self.body(x)
        return self.actor(hidden), self.critic(hidden)


def heads(model, *inputs, networks=None, **keywords):
    trace = trace_layers(model, *inputs, **keywords)
    assert not trace.problem
    scope = default_scope(model, networks, trace)
    return {name: reason for name, reason in scope.excluded.items() if "head" in reason}


def test_every_layer_whose_output_no_other_takes_is_a_head():
    assert heads(ActorCritic(), torch.randn(2, 5)) == {
        "actor.weight": "output head (no layer takes its output)",
        "critic.weight": "output head (no layer takes its output)",
        "training_only.1.weight": (
            "output head (last of the layers that the traced forward pass leaves out)"
        ),
    }
    assert list(default_scope(ActorCritic()).excluded) == ["training_only.1.weight"]


def test_heads_are_those_of_each_network():
    """A generator whose output a discriminator takes: both end in a head."""

    class Gan(nn.Module):
        def __init__(self):
            super().__init__()
            self.judge = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
            self.make = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4))

        def forward(self, z):
            return self.judge(self.make(z))

    model = Gan()
    networks = [list(model.judge.parameters()), list(model.make.parameters())]
    assert heads(model, torch.randn(3, 2), networks=networks).keys() == {
        "judge.1.weight",
        "make.1.weight",
    }
    assert heads(model, torch.randn(3, 2)).keys() == {"judge.1.weight"}


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0])


class Written(nn.Module):
    """Results are written into a part of a tensor, and shapes coincide with those of weights."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        hidden = torch.empty(len(x), 4)
        hidden[:, :2] = self.left(x)
        hidden[:, 2:] = self.right(x)
        return self.head(hidden) + x


class HiddenKernel(torch.autograd.Function):
    """Stands for a kernel that no operation of torch computes."""

    @staticmethod
    def forward(ctx, x):
        result = torch.empty(x.shape)
        result.numpy()[...] = x.detach().numpy() * 2
        return result


class Kernel(nn.Module):
    def forward(self, x):
        return HiddenKernel.apply(x)


ONE_HEAD = {
    "mlp with a batch as long as wide": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)),
        torch.randn(4, 4),
        "2.weight",
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(),
            nn.Linear(16, 2),
        ),
        torch.randn(2, 1, 6, 6),
        "4.weight",
    ),
    "cells": (Cells, torch.randn(2, 3, 3), "head.weight"),
    "written": (Written, torch.randn(4, 4), "head.weight"),
    "transformer": (
        lambda: nn.Sequential(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
            nn.Linear(8, 2),
        ),
        torch.randn(1, 3, 8),
        "1.weight",
    ),
    "norms": (
        lambda: nn.Sequential(
            *(norm(nn.Linear(4, 4)) for norm in (weight_norm, spectral_norm, weight_norm))
        ),
        torch.randn(4, 4),
        "2.parametrizations.weight.original1",
    ),
    "kernel": (
        lambda: nn.Sequential(nn.Linear(4, 4), Kernel(), nn.Linear(4, 4), Kernel()),
        torch.randn(2, 4),
        "2.weight",
    ),
    "compiled": (
        lambda: torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), backend="eager"),
        torch.randn(2, 4),
        "1.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE_HEAD)
def test_one_head_is_found(kind):
    make, inputs, head = ONE_HEAD[kind]
    assert list(heads(make(), inputs)) == [head]


@pytest.mark.parametrize("family", ["Bert", "GPT2", "ViT"])
def test_models_of_transformers_have_one_head(family):
    """The same as without a trace: their classifier is defined last."""
    import transformers

    settings = {"num_labels": 3, "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 20}
    settings |= {"num_attention_heads": 2, "intermediate_size": 32, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**settings)
    if family == "ViT":
        config.image_size, config.patch_size = 8, 4
        model, inputs = transformers.ViTForImageClassification(config), torch.randn(1, 3, 8, 8)
    else:
        model = getattr(transformers, f"{family}ForSequenceClassification")(config)
        inputs = torch.ones(1, 4, dtype=torch.long)
    traced = default_scope(model, trace=trace_layers(model, inputs))
    assert list(traced.included) == list(default_scope(model).included)


class Restless(nn.Module):
    """Changes buffers, attributes and modes, and draws random numbers, whenever it is called."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
        self.register_buffer("calls", torch.zeros(()))
        self.history, self.latest = [], {}

    def forward(self, x):
        self.calls += 1
        self.history.append(x)
        self.latest["x"] = x
        self.number = random.random() + np.random.rand() + torch.rand(())  # noqa: S311
        self.train()
        return self.layers(x)


def test_trace_changes_nothing():
    torch.manual_seed(0)
    model = Restless()
    model.layers[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    trace = trace_layers(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert trace.used == {id(model.layers[0])}
    assert (torch.get_rng_state() == states[0]).all()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert (model.history, model.latest, hasattr(model, "number")) == ([], {}, False)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_trace_of_a_forward_pass_that_fails_says_so():
    model = ActorCritic()
    trace = trace_layers(model, torch.randn(2, 4))
    assert trace.problem.startswith("RuntimeError: ")
    assert not any(module._forward_hooks for module in model.modules())
    scope = default_scope(model, trace=trace)
    assert scope.excluded == {"training_only.1.weight": "output head (last layer)"}
    assert scope.notes == [f"No forward pass could be traced: {trace.problem}"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_layers_are_in_training_mode_afterwards():
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Sequential(nn.Dropout(0.5))))
    trace_layers(model, torch.ones(2, 4))
    assert [child.training for child in model[1].modules()] == [True, True]
