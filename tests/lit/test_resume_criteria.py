"""A run resumed after any epoch equals the undisturbed one, bitwise, with every criterion."""

from __future__ import annotations

import signal
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from kd_prune.lit import SparsityCallback
from kd_prune.lit.signals import Interrupted
from kd_prune.pruning import Global, RigL, magnitude, periodic_updates
from kd_prune.pruning.criteria import PLATON, Movement, Random, SoftMovement, Taylor, Wanda
from kd_prune.pruning.criteria.fisher import BlockFisher, DiagonalFisher

from .networks import UserModule, assert_exact, make_trainer, mlp
from .test_checkpointing import At, Run, assert_equal_runs, send
from .toy import STEPS_PER_EPOCH

EPOCHS = 3
WAYS: dict[str, dict[str, Any]] = {
    "magnitude": {"criterion": magnitude},
    "global": {"allocation": Global()},
    "regrow": {"regrow": True},
    "rigl": {"regrow": RigL(), "initial": 0.8, "update_schedule": periodic_updates},
    "random": {"criterion": Random()},
    "taylor": {"criterion": Taylor()},
    "movement": {"criterion": Movement()},
    "soft movement": {"criterion": SoftMovement(rate=1.0, penalty=10.0)},
    "movement, regrow": {"criterion": Movement(), "regrow": True},
    "platon": {"criterion": PLATON()},
    "wanda": {"criterion": Wanda()},
    "diagonal fisher": {"criterion": DiagonalFisher()},
    "block fisher": {"criterion": BlockFisher(block=10)},
}


class Logged(L.Callback):
    """Everything that was logged, by step."""

    def __init__(self):
        self.values = {}

    def on_train_batch_end(self, trainer, *args):
        logged = trainer.callback_metrics.items()
        self.values[trainer.global_step] = {name: float(value) for name, value in logged}


class Dropping(UserModule):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.log("loss", loss)
        return loss


def fit(folder, options, *, resume=None):
    torch.manual_seed(0)
    module = Dropping(mlp(), (8,))
    pruning = SparsityCallback(0.8, updates=5, end=0.8, **options)
    logged = Logged()
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = make_trainer(
        folder, pruning, logged, keep, max_epochs=EPOCHS, enable_checkpointing=True
    )
    trainer.fit(module, module.batches(), ckpt_path=resume, weights_only=True)
    return module, pruning, trainer, logged.values


def same(ours: Any, theirs: Any) -> bool:
    """Nested plain data of equal tensors."""
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_resumed_after_any_epoch(tmp_path, way):
    module, pruning, trainer, logged = fit(tmp_path, WAYS[way])
    if way != "global":
        assert_exact(module, pruning, 0.8)
    for epoch in range(EPOCHS - 1):
        path = tmp_path / f"epoch={epoch}.ckpt"
        again, resumed, other, others = fit(tmp_path / str(epoch), WAYS[way], resume=path)
        assert same(dict(module.state_dict()), dict(again.state_dict())), epoch
        assert same(pruning.state_dict(), resumed.state_dict()), epoch
        optimizers = [t.optimizers[0].state_dict() for t in (trainer, other)]
        assert same(*optimizers), epoch
        assert min(others) == 6 * (epoch + 1) + 1
        assert all(logged[step] == others[step] for step in others), epoch


@pytest.mark.parametrize("way", WAYS)
def test_interrupted_within_an_epoch(tmp_path, way):
    """In the middle of the second: loader, generators and all that a criterion remembers."""
    whole = Run(tmp_path / "whole", **WAYS[way]).go()
    cut = Run(tmp_path / "cut", **WAYS[way])
    with pytest.raises(Interrupted):
        cut.go(At(send(signal.SIGTERM), batch=STEPS_PER_EPOCH + 2))
    again = Run(tmp_path / "cut", **WAYS[way]).go(resume=True, seed=99)
    assert_equal_runs(whole, again)
    assert same(whole.pruning.state_dict(), again.pruning.state_dict())
