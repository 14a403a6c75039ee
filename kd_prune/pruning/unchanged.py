"""unchanged: try something out with a model, and leave model and random generators as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore a model afterwards: attributes, submodules, buffers, modes, what requires a gradient.

    Attributes that are dicts, lists or sets get their entries back; other objects that are changed
    in place stay changed. The random generators of Python, NumPy, the CPU and the model's devices
    are restored too.

    >>> model = nn.Linear(2, 2)
    >>> with unchanged(model):
    ...     model.calls = 1
    ...     model.weight.requires_grad_(False).shape
    torch.Size([2, 2])
    >>> hasattr(model, "calls"), model.weight.requires_grad
    (False, True)
    """
    parameters = {parameter: parameter.requires_grad for parameter in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    attributes = [
        (vars(module), dict(vars(module)), [_entries(v) for v in vars(module).values()])
        for module in model.modules()
    ]
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        for kind, indices in _devices(model).items():
            fork = torch.random.fork_rng(devices=indices, device_type=kind)
            stack.enter_context(fork)
        try:
            yield
        finally:
            for current, before, entries in attributes:
                current.clear()
                current.update(before)
                for restore in entries:
                    restore()
            for module, training in modes.items():
                if module.training != training:  # of TorchScript, which keeps it elsewhere
                    module.training = training
            for parameter, requires_grad in parameters.items():
                parameter.requires_grad_(requires_grad)
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            random.setstate(python)
            np.random.set_state(numpy)


def _entries(container: Any) -> Any:
    """Return a function that gives a dict, list or set its present entries back."""
    if not isinstance(container, dict | list | set):
        return lambda: None
    copy = container.copy()

    def restore() -> None:
        container.clear()
        container.extend(copy) if isinstance(container, list) else container.update(copy)

    return restore


def _devices(model: nn.Module) -> dict[str, list[int]]:
    """Return kind → indices of the devices with a random generator that hold the model."""
    devices = {p.device for p in (*model.parameters(), *model.buffers())}
    found: dict[str, list[int]] = {"cuda": []}  # its fork includes the CPU's generator
    for device in devices:
        if device.type not in ("cpu", "meta"):
            found.setdefault(device.type, []).append(device.index or 0)
    return found
