"""Several SparsityCallbacks in one Trainer, and optimizers that wrap others."""

from __future__ import annotations

import pytest
import torch

from kd_prune.errors import ConfigError
from kd_prune.lit import SparsityCallback
from kd_prune.pruning import Block, Global, Scope, Taylor

from .networks import UserModule, assert_exact, make_trainer, mlp

FIRST, SECOND = (Scope(include=[f"network.{layer}.weight"]) for layer in (0, 2))


def theirs():
    torch.manual_seed(0)
    return UserModule(mlp(), (8,))


@pytest.mark.parametrize("name", [None, "mine"])
def test_two_callbacks_of_one_name_are_refused_in_one_line(tmp_path, name):
    pair = [SparsityCallback(0.5, scope=scope, name=name) for scope in (FIRST, SECOND)]
    trainer = make_trainer(tmp_path, *pair)
    of = "of this name" if name else "without a name"
    says = rf"^name={name or 'null'}: the Trainer has two SparsityCallbacks {of}; give each its own"
    with pytest.raises(ConfigError, match=says):
        trainer.fit(theirs(), theirs().batches())


def test_callbacks_of_other_names_take_their_own_states(tmp_path):
    def pair():
        return [SparsityCallback(0.5, scope=FIRST), SparsityCallback(0.8, scope=SECOND, name="b")]

    trainer = make_trainer(tmp_path, *pair(), max_epochs=1)
    trainer.fit(theirs(), theirs().batches())
    trainer.save_checkpoint(path := tmp_path / "x.ckpt")
    saved = torch.load(path, weights_only=True)["callbacks"]
    assert set(saved) >= {"SparsityCallback", "SparsityCallback[b]"}
    again = pair()
    trainer = make_trainer(tmp_path, *again, max_epochs=1)
    trainer.fit(theirs(), theirs().batches(), ckpt_path=path, weights_only=True)
    for callback in again:
        masks = saved[callback.state_key]["pruner"]["masks"]
        assert all(torch.equal(mask, masks[n]) for n, mask in callback.pruner.masks.items())


def test_overlapping_scopes_are_refused(tmp_path):
    both = Scope(include=["network.0.weight", "network.2.weight"])
    pair = [
        SparsityCallback(0.5, scope=both),
        SparsityCallback(0.5, submodule="network", scope=Scope(include=["0.weight"]), name="b"),
    ]
    says = r"^scope: 0\.weight: pruned by SparsityCallback\(name='b'\) and by SparsityCallback;"
    with pytest.raises(ConfigError, match=says):
        make_trainer(tmp_path, *pair).fit(theirs(), theirs().batches())


def test_callbacks_may_be_used_again_one_by_one(tmp_path):
    pair = [SparsityCallback(0.5, scope=FIRST), SparsityCallback(0.5, scope=FIRST)]
    for pruning in pair:
        module = theirs()
        make_trainer(tmp_path, pruning).fit(module, module.batches())
        assert_exact(module, pruning, 0.5)


def test_reports_say_whose_they_are(tmp_path, capsys):
    pair = [SparsityCallback(0.5, scope=FIRST, name="a"), SparsityCallback(0.8, scope=SECOND)]
    make_trainer(tmp_path, *pair).fit(theirs(), theirs().batches())
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("a: Pruning 64 of 128 weights") for line in lines) == 1
    assert sum(line.startswith("a: Sparsity as counted") for line in lines) == 1
    assert sum(line.startswith("Sparsity as counted") for line in lines) == 1


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"granularity": Block(rows=1, columns=2)}, "granularity"),
        ({"allocation": Global(ceiling=0.95)}, "allocation"),
    ],
)
def test_resuming_with_another_granularity_or_allocation_is_refused(tmp_path, options, key):
    module = theirs()
    trainer = make_trainer(tmp_path, SparsityCallback(0.5), max_epochs=1)
    trainer.fit(module, module.batches())
    trainer.save_checkpoint(path := tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=rf"^{key}=.*was made with {key}=.*; resume with the"):
        make_trainer(tmp_path, SparsityCallback(0.5, **options), max_epochs=2).fit(
            theirs(), module.batches(), ckpt_path=path, weights_only=True
        )


class Optimizable:
    """Lightning's protocol of an optimizer, around one of torch."""

    def __init__(self, optimizer):
        self.optimizer, self.defaults = optimizer, optimizer.defaults
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self.state_dict, self.load_state_dict = optimizer.state_dict, optimizer.load_state_dict
        self.zero_grad = optimizer.zero_grad

    def step(self, closure=None):
        return self.optimizer.step(closure)


@pytest.mark.parametrize("options", [{}, {"criterion": Taylor(), "regrow": True}])
def test_optimizable_prunes_as_the_optimizer_inside(tmp_path, options):
    class Wrapped(UserModule):
        def configure_optimizers(self):
            return Optimizable(super().configure_optimizers())

    masks = []
    for kind in (UserModule, Wrapped):
        torch.manual_seed(0)
        module, pruning = kind(mlp(), (8,)), SparsityCallback(0.5, **options)
        make_trainer(tmp_path, pruning).fit(module, module.batches())
        assert_exact(module, pruning, 0.5)
        masks.append(pruning.pruner.masks)
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
