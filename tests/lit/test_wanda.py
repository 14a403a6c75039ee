"""Wanda in a user's project: which layers' inputs it observes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_prune.lit import SparsityCallback
from kd_prune.lit.progress import RunLength
from kd_prune.pruning import Wanda, default_scope

from .networks import (
    CLASSES,
    Recurrent,
    UserModule,
    make_trainer,
    mlp,
)


@pytest.mark.parametrize("network", ["recurrent", "attention"])
def test_wanda_refuses_recurrent_and_attention_layers(tmp_path, network):
    if network == "recurrent":
        module = UserModule(Recurrent(), (3, 8))
    else:
        encoder = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        module = UserModule(nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, CLASSES)), (3, 8))
    pruning, says = SparsityCallback(criterion=Wanda()), r"criterion=Wanda\(\).*leave it out of"
    trainer = make_trainer(tmp_path, pruning)
    parameters = default_scope(module).included
    with pytest.raises(ValueError, match=says):  # before a fit, as a job does
        pruning.check(trainer, module, parameters, RunLength(steps=100))
    with pytest.raises(ValueError, match=says):
        trainer.fit(module, module.batches())


def test_wanda_observes_inputs_given_by_name(tmp_path):
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp()

        def forward(self, x):
            for layer in self.layers:
                x = layer(input=x)
            return x

    masks = []
    for network in (mlp, ByName):
        torch.manual_seed(0)
        module = UserModule(network(), (8,))
        pruning = SparsityCallback(criterion=Wanda())
        make_trainer(tmp_path, pruning).fit(module, module.batches())
        masks.append(list(pruning.pruner.masks.values()))
    assert all(torch.equal(*pair) for pair in zip(*masks, strict=True))


def test_refusal_leaves_no_hook_behind(tmp_path):
    """The layer that is refused comes after one that is not."""
    encoder = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    network = nn.Sequential(nn.Linear(8, 8), encoder, nn.Flatten(), nn.Linear(24, CLASSES))
    module = UserModule(network, (3, 8))
    with pytest.raises(ValueError, match=r"criterion=Wanda\(\).*leave it out of the scope"):
        make_trainer(tmp_path, SparsityCallback(criterion=Wanda())).fit(module, module.batches())
    assert not any(layer._forward_pre_hooks for layer in module.modules())


@pytest.mark.filterwarnings("ignore:Found 5 module")
def test_wanda_observes_a_model_in_eval_mode(tmp_path):
    """As Hugging Face models are loaded; Lightning leaves the mode as it is."""
    masks = []
    for training in (True, False):
        torch.manual_seed(0)
        module = UserModule(mlp().train(training), (8,))
        pruning = SparsityCallback(criterion=Wanda())
        make_trainer(tmp_path, pruning).fit(module, module.batches())
        masks.append(list(pruning.pruner.masks.values()))
    assert all(torch.equal(*pair) for pair in zip(*masks, strict=True))
