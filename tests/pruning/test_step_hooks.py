"""Pruner.attach: torch's optimizers, wrappers of them, and what is no optimizer."""

import copy

import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from kd_prune.errors import ConfigError
from kd_prune.pruning import Pruner, Schedule, Taylor
from kd_prune.pruning.step_hooks import hook_steps

from .toy import OPTIMIZERS, STEPS, bits, make_model, make_pruner, train_step


class Forwards:
    """Lightning's `Optimizable` protocol, and no more."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self):
        self.optimizer.zero_grad()


class Accelerated(torch.optim.Optimizer):
    """As in accelerate: an `Optimizer` by class whose `__init__` is not called."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class Lookahead(Accelerated):
    """Changes the weights after the step of the optimizer inside."""

    def __init__(self, optimizer, every=3, share=0.5):
        self._base_optimizer = optimizer
        self.every, self.share, self.made = every, share, 0
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    param_groups = property(lambda self: self._base_optimizer.param_groups)
    state = property(lambda self: self._base_optimizer.state)

    def zero_grad(self, set_to_none=True):
        self._base_optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        self._base_optimizer.step(closure)
        self.made += 1
        if self.made % self.every == 0:
            fast = [p for group in self.param_groups for p in group["params"]]
            for weight, slow in zip(fast, self.slow, strict=True):
                weight.copy_(slow.lerp_(weight, self.share))


class Own:
    """An optimizer of its own that wraps none: gradient descent."""

    def __init__(self, parameters):
        self.param_groups, self.state = [{"params": list(parameters)}], {}

    @torch.no_grad()
    def step(self, closure=None):
        for weight in self.param_groups[0]["params"]:
            weight -= 0.05 * weight.grad

    def zero_grad(self):
        for weight in self.param_groups[0]["params"]:
            weight.grad = None


def fit(wrap, **options):
    model = make_model()
    optimizer = wrap(OPTIMIZERS["adamw"](model.parameters()))
    pruner = make_pruner(model, **options)
    pruner.attach(optimizer)
    for step in range(1, STEPS + 1):
        train_step(model, optimizer, step)
        for name, mask in pruner.masks.items():
            assert not model.get_parameter(name)[~mask].any(), "projected after every step"
    assert pruner.steps == STEPS
    assert pruner.sparsity == 99 / 110
    return model, pruner


@pytest.mark.parametrize("wrap", [Forwards, Accelerated, LightningOptimizer])
@pytest.mark.parametrize("options", [{}, {"criterion": Taylor(), "regrow": True}])
def test_attach_wrapper_prunes_as_the_optimizer_inside(wrap, options):
    if wrap is LightningOptimizer:
        wrap = make_lightning
    plain, _ = fit(lambda optimizer: optimizer, **options)
    wrapped, _ = fit(wrap, **options)
    for ours, theirs in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(bits(ours), bits(theirs))


def make_lightning(optimizer):
    class Strategy:
        def optimizer_step(self, optimizer, closure=None, **kwargs):
            return optimizer.step(closure)

    wrapped = LightningOptimizer(optimizer)
    wrapped._strategy = Strategy()
    return wrapped


def test_attach_lookahead_leaves_no_pruned_weight_of_its_average():
    _, pruner = fit(Lookahead)
    assert pruner.sparsity == 99 / 110


def test_attach_optimizer_that_is_none_of_torch():
    model = make_model()
    fit(lambda optimizer: Own(p for group in optimizer.param_groups for p in group["params"]))
    optimizer = Own(model.parameters())
    calls = []
    handles = hook_steps(
        optimizer,
        before=lambda *_: calls.append("before"),
        after=lambda: calls.append("after"),
        after_wrapper=lambda: calls.append("wrapper"),
    )
    train_step(model, optimizer, 1)
    for handle in [*handles, *handles]:
        handle.remove()
    train_step(model, optimizer, 2)
    assert calls == ["before", "after"]
    assert "step" not in vars(optimizer)


def test_removed_hook_leaves_a_later_patch_in_place():
    model = make_model()
    optimizer, calls = Own(model.parameters()), []
    (handle,) = hook_steps(
        optimizer, before=lambda *_: None, after=lambda: calls.append(1), after_wrapper=int
    )
    ours = optimizer.step
    optimizer.step = lambda closure=None: (calls.append(2), ours(closure))
    handle.remove()
    train_step(model, optimizer, 1)
    assert calls == [2]


def test_attached_wrapper_takes_a_learning_rate_schedule():
    """Which wraps the method `step` in turn, whether made before or after."""
    model = make_model()
    optimizer = Lookahead(OPTIMIZERS["sgd"](model.parameters()))
    pruner = make_pruner(model)
    early = LambdaLR(optimizer._base_optimizer, lambda step: 1.0)
    pruner.attach(optimizer)
    late = LambdaLR(optimizer._base_optimizer, lambda step: 1.0)
    for step in range(1, STEPS + 1):
        train_step(model, optimizer, step)
        early.step()
        late.step()
    assert pruner.sparsity == 99 / 110


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, Accelerated, Lookahead])
def test_attach_twice_is_refused(wrap):
    model = make_model()
    inner = OPTIMIZERS["sgd"](model.parameters())
    optimizer, pruner = wrap(inner), make_pruner(model)
    pruner.attach(optimizer)
    for again in {optimizer, inner}:
        with pytest.raises(ConfigError, match=r"attached to it already, .*twice; attach it once"):
            pruner.attach(again)
    train_step(model, optimizer, 1)
    assert pruner.steps == 1


@pytest.mark.parametrize("value", ["adam", torch.optim.SGD, None, make_model()])
def test_attach_what_is_no_optimizer_is_refused(value):
    with pytest.raises(TypeError, match=r"^optimizer=\w+: expected an optimizer, .*; attach the"):
        make_pruner(make_model()).attach(value)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_do_not_count(fused):
    """A fused optimizer is called for them, and told to change nothing."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    pruner = make_pruner(model, criterion=Taylor())
    pruner.attach(optimizer)
    for factor in (torch.inf, 1.0, torch.inf, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale(factor * model(torch.ones(2, 7)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert pruner.steps == 3
    assert all(s["score"].isfinite().all() for s in pruner._criterion_state.values())


def test_optimizer_of_a_copy_is_refused():
    layer = nn.Linear(4, 4)
    copied = copy.deepcopy(layer)
    pruner = Pruner({"weight": layer.weight}, Schedule(0.5), total_steps=5)
    with pytest.raises(ConfigError, match=r"optimizer=SGD: updates none of the Pruner's 1 param"):
        pruner.attach(torch.optim.SGD(copied.parameters(), lr=0.1))
