"""Hooks before and after the steps of an optimizer, of one that wraps another too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from types import MethodType
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from kd_prune.errors import ConfigError, ConfigTypeError

BeforeStep = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]
"""Optimizer, positional arguments of `step` (the optimizer first), keyword arguments."""
AfterStep = Callable[[], None]

WRAPPED = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer", "inner_optimizer")
"""Attributes in which wrappers keep their optimizer: Lightning, Fabric, Accelerate, Lookahead."""


class Handle(Protocol):
    """What is returned for a hook: removes it."""

    def remove(self) -> None:
        """Remove the hook; a second time does nothing."""


def optimizer_chain(optimizer: Any) -> list[Any]:
    """Return an optimizer and those that it wraps, the outermost first.

    >>> import torch
    >>> inner = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    >>> optimizer_chain(inner) == [inner]
    True
    """
    chain = [optimizer]
    while not _has_hooks(chain[-1]):
        candidates = (getattr(chain[-1], name, None) for name in WRAPPED)
        known = set(map(id, chain))
        inner = next((c for c in candidates if _is_optimizer(c) and id(c) not in known), None)
        if inner is None:
            break
        chain.append(inner)
    return chain


def hook_steps(
    optimizer: Any, *, before: BeforeStep, after: AfterStep, after_wrapper: AfterStep
) -> list[Handle]:
    """Call functions before and after every real step of an optimizer.

    torch's own hooks are used where the optimizer has them. Otherwise the optimizer that it wraps
    is hooked: it makes no step where a wrapper accumulates gradients or skips one. A wrapper may
    change weights after that step (Lookahead does), so `after_wrapper` follows each of its steps.

    Args:
        optimizer: An optimizer of torch, a wrapper of one, or any object with ``step`` and
            ``param_groups`` (Lightning's ``Optimizable``).
        before: Called before a step with the optimizer that makes it and its arguments.
        after: Called after a step.
        after_wrapper: Called after a step of each optimizer around the one that makes the step.

    Returns:
        Handles that remove the hooks.
    """
    *wrappers, innermost = optimizer_chain(optimizer)

    def before_step(stepping: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not skips_step(innermost):
            before(stepping, args, kwargs)

    def after_step() -> None:
        if not skips_step(innermost):
            after()

    handles: list[Handle]
    if _has_hooks(innermost):
        handles = [
            innermost.register_step_pre_hook(before_step),
            innermost.register_step_post_hook(lambda *_: after_step()),
        ]
    else:
        handles = [PatchedStep(innermost, before_step, after_step)]
    return handles + [PatchedStep(wrapper, None, after_wrapper) for wrapper in wrappers]


def skips_step(optimizer: Any) -> bool:
    """Return whether a GradScaler tells a fused optimizer, in its step, to change nothing.

    Other optimizers are not called where a gradient is not finite.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def check_parameters(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse an optimizer of another model, as of a copy, whose steps would prune nothing.

    Raises:
        ConfigError: It updates none of the parameters.
    """
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list) or not groups:
        return
    updated = {id(parameter) for group in groups for parameter in group["params"]}
    if updated.isdisjoint(map(id, parameters.values())):
        raise ConfigError(
            "optimizer",
            type(optimizer).__name__,
            f"updates none of the Pruner's {len(parameters)} parameters",
            "make the Pruner from the model that this optimizer trains",
        )


def check_attachable(optimizer: Any, attached: Iterable[Any]) -> Any:
    """Return the optimizer that makes the steps, unless it cannot be hooked or is hooked already.

    Args:
        optimizer: An optimizer or a wrapper of one.
        attached: Earlier results of this function.

    Raises:
        ConfigTypeError: `optimizer` is no optimizer.
        ConfigError: Its steps would be counted twice.

    >>> check_attachable("adam", [])
    Traceback (most recent call last):
    kd_prune.errors.ConfigTypeError: optimizer=str: expected an optimizer, with step() and ...
    """
    if not _is_optimizer(optimizer):
        kind = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
        raise ConfigTypeError(
            "optimizer",
            kind,
            "expected an optimizer, with step() and param_groups",
            "attach the torch.optim.Optimizer that updates the weights",
        )
    innermost = optimizer_chain(optimizer)[-1]
    if any(innermost is earlier for earlier in attached):
        raise ConfigError(
            "optimizer",
            type(optimizer).__name__,
            "this Pruner is attached to it already, and every step would count twice",
            "attach it once",
        )
    return innermost


class PatchedStep:
    """Replaces the ``step`` of one object until it is removed."""

    def __init__(self, optimizer: Any, before: BeforeStep | None, after: AfterStep) -> None:
        self._optimizer, self._original = optimizer, optimizer.step
        self._was_own = "step" in vars(optimizer)
        self._active = True
        original = self._original

        @wraps(original)
        def step(this: Any, *args: Any, **kwargs: Any) -> Any:
            if self._active and before:
                before(this, (this, *args), kwargs)
            result = original(*args, **kwargs)
            if self._active:
                after()
            return result

        # A method, because learning-rate schedulers look into it.
        self._patched = optimizer.step = MethodType(step, optimizer)

    def remove(self) -> None:
        """Restore ``step``; where others have replaced it since, only stop calling the hooks."""
        self._active = False
        if vars(self._optimizer).get("step") is not self._patched:
            return
        if self._was_own:
            self._optimizer.step = self._original
        else:
            del self._optimizer.step


def _is_optimizer(value: Any) -> bool:
    return not isinstance(value, type) and hasattr(value, "step") and hasattr(value, "param_groups")


def _has_hooks(optimizer: Any) -> bool:
    """Return whether torch calls hooks at the optimizer's steps: not if it skipped `__init__`."""
    return (
        isinstance(optimizer, Optimizer)
        and hasattr(optimizer, "_optimizer_step_post_hooks")
        and getattr(type(optimizer).step, "hooked", False)
    )
