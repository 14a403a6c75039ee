"""SparsityCallback.preview before a fit: it is that of the fit, and changes nothing."""

import random

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.lit import SparsityCallback

from .networks import UserModule, make_trainer, mlp


class WithTeacher(UserModule):
    """A teacher that requires gradients, and that no optimizer holds."""

    def __init__(self):
        super().__init__(mlp(), (8,))
        self.teacher = mlp()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.network.parameters(), lr=1e-2)


class Gan(UserModule):
    """Two networks with an optimizer and a schedule each, as long as the run."""

    def __init__(self):
        super().__init__(mlp(), (8,))
        self.other = mlp()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for optimizer, network in zip(self.optimizers(), (self.network, self.other), strict=True):
            optimizer.zero_grad()
            self.manual_backward(network(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self):
        self.steps = self.trainer.estimated_stepping_batches
        torch.rand(()), random.random()  # noqa: S311
        result = []
        for network in (self.network, self.other):
            optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=int(self.steps))
            result.append({"optimizer": optimizer, "lr_scheduler": schedule})
        return tuple(result)


class PartlyFrozen(UserModule):
    """Decides what trains when the optimizer is made."""

    def __init__(self):
        super().__init__(mlp(), (8,))

    def configure_optimizers(self):
        self.network[0].requires_grad_(False)
        return [torch.optim.AdamW(self.parameters(), lr=1e-2)], []


@pytest.mark.parametrize("make", [WithTeacher, Gan, PartlyFrozen])
def test_preview_asks_the_optimizers_and_is_that_of_the_fit(tmp_path, capsys, make):
    module, pruning = make(), SparsityCallback(0.9, updates=4)
    attributes = set(vars(module))
    states = torch.get_rng_state(), random.getstate()
    plan = pruning.preview(make_trainer(tmp_path), module, module.batches())
    assert (torch.get_rng_state() == states[0]).all()
    assert random.getstate() == states[1]
    assert set(vars(module)) == attributes
    assert module._trainer is None
    assert all(parameter.requires_grad for parameter in module.parameters())
    capsys.readouterr()
    make_trainer(tmp_path, pruning).fit(module, module.batches())
    assert [t.name for t in plan.tensors] == list(pruning.pruner.parameters)
    assert str(plan) in capsys.readouterr().out
    if make is Gan:
        assert module.steps == plan.total == 12


def test_preview_says_where_the_optimizers_are_not_known(tmp_path):
    class Late(WithTeacher):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.made_by_setup, lr=1e-2)

    module = Late()
    plan = SparsityCallback(0.9).preview(make_trainer(tmp_path), module, module.batches())
    assert {t.name.split(".")[0] for t in plan.tensors} == {"network", "teacher"}
    assert str(plan).splitlines()[-1] == (
        "configure_optimizers fails before the fit (AttributeError), so which parameters train is "
        "not known: all that require a gradient are taken"
    )


class OwnLoader(UserModule):
    """Has its data itself, made by `setup`."""

    def __init__(self):
        super().__init__(mlp(), (8,))

    def setup(self, stage):
        self.count = 5 if stage == "fit" else 0

    def train_dataloader(self):
        return self.batches(self.count)


def test_preview_takes_the_loader_of_the_module(tmp_path):
    module, pruning = OwnLoader(), SparsityCallback(0.9, updates=4)
    trainer = make_trainer(tmp_path, pruning, max_epochs=3)
    plan = pruning.preview(trainer, module)
    assert (plan.total, hasattr(module, "count")) == (15, False)
    trainer.fit(module)
    assert pruning.preview(trainer).updates == plan.updates


def test_preview_without_any_loader_asks_for_it(tmp_path):
    module = UserModule(mlp(), (8,))
    message = r"^train_dataloader=null: max_epochs=2 is counted in batches .*; give the loader"
    with pytest.raises(ConfigError, match=message):
        SparsityCallback(0.9).preview(make_trainer(tmp_path, max_epochs=2), module)
    endless = make_trainer(tmp_path, max_epochs=-1)
    with pytest.raises(ConfigError, match=r"^trainer.max_epochs=-1: a run needs an end"):
        SparsityCallback(0.9).preview(endless, module)


def test_preview_of_a_module_without_optimizers_takes_all(tmp_path):
    class Plain(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

    plan = SparsityCallback(0.5).preview(make_trainer(tmp_path, max_steps=9), Plain())
    assert [t.name for t in plan.tensors] == ["network.0.weight"]
