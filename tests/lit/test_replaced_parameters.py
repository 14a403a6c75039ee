"""Parameters that take the place of others during a fit, and weights of another checkpoint."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import remove_parametrizations

from kd_prune.lit import SparsityCallback
from kd_prune.pruning.initial_zeros import InitialZerosWarning

from .networks import UserModule, assert_exact, make_trainer, mlp


class Assigning(UserModule):
    def __init__(self):
        super().__init__(mlp(), (8,))
        self.saved = {name: tensor.clone() for name, tensor in self.state_dict().items()}

    def on_train_start(self):
        self.load_state_dict(self.saved, assign=True)


class NewLayer(UserModule):
    def __init__(self):
        super().__init__(mlp(), (8,))

    def on_train_epoch_start(self):
        if self.trainer.current_epoch == 1:
            self.network[2] = nn.Linear(16, 16).to(self.device)
            self.trainer.strategy.setup_optimizers(self.trainer)


@pytest.mark.parametrize(
    ("kind", "named"),
    [(Assigning, "network.0.weight, network.2.weight"), (NewLayer, "network.2.weight")],
)
def test_replaced_parameters_are_named(tmp_path, kind, named):
    module = kind()
    with pytest.warns(UserWarning, match=f"^{named}: replaced by other parameters during the fit"):
        make_trainer(tmp_path, SparsityCallback(0.9)).fit(module, module.batches())


def test_parametrization_may_be_removed_at_the_end_of_training(tmp_path, capsys):
    class Removing(UserModule):
        def __init__(self):
            super().__init__(mlp(), (8,))
            parametrizations.weight_norm(self.network[2])

        def on_train_end(self):
            remove_parametrizations(self.network[2], "weight")

    module = Removing()
    with pytest.warns(UserWarning, match=r"^network\.2\.parametrizations\.\S+: replaced"):
        make_trainer(tmp_path, SparsityCallback(0.9)).fit(module, module.batches())
    assert "network.0.weight   89.84 %" in capsys.readouterr().out
    assert int((module.network[2].weight == 0).sum()) == round(0.9 * 256)


def test_a_file_saved_after_a_test_has_the_weights_that_were_tested(tmp_path):
    class Rising(UserModule):
        def validation_step(self, batch, index):
            self.log("loss", float(self.global_step))

        def test_step(self, batch, index):
            self.zeros = int((self.network[2].weight == 0).sum())

    module, pruning = Rising(mlp(), (8,)), SparsityCallback(0.9)
    best = ModelCheckpoint(tmp_path, monitor="loss")
    trainer = make_trainer(
        tmp_path, pruning, best, max_epochs=3, enable_checkpointing=True, num_sanity_val_steps=0
    )
    with pytest.warns(UserWarning, match="saved on the ramp"):
        trainer.fit(module, module.batches(), module.batches())
    assert_exact(module, pruning)
    trainer.test(module, module.batches(), ckpt_path="best", weights_only=True, verbose=False)
    trainer.save_checkpoint(tmp_path / "tested.ckpt")
    saved = torch.load(tmp_path / "tested.ckpt", weights_only=True)["state_dict"]
    assert module.zeros < 200
    assert int((saved["network.2.weight"] == 0).sum()) == module.zeros


def test_nothing_to_keep_is_said(tmp_path):
    module = UserModule(mlp(), (8,))
    with pytest.warns(InitialZerosWarning, match="^no weight in scope is zero, so none is kept"):
        make_trainer(tmp_path, SparsityCallback(None)).fit(module, module.batches())
