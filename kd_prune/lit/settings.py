"""plain_settings: objects such as criteria and schedules as plain data, for fingerprints."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


class UnknownPartError(ValueError):
    """An object has no description that is the same in every process."""


def plain_settings(value: Any, *, strict: bool = False) -> Any:
    """Describe a value by names, numbers, lists and dicts that are equal for equal settings.

    Functions and classes become ``module.name``; dataclasses, modules and other objects become
    ``{"class": module.name, …}`` with their fields or public attributes, and a hash of each
    parameter and buffer of a module under ``tensors``.

    Args:
        value: The value.
        strict: Whether to refuse parts whose description may differ between processes: functions
            defined inside functions or in a script, and objects other than dataclasses, modules
            and objects with a method `arguments`.

    Raises:
        UnknownPartError: `strict` is true and `value` holds such a part.

    >>> plain_settings({"activation": nn.functional.relu, "milestones": (0.5, 0.8)})
    {'activation': 'torch.nn.functional.relu', 'milestones': [0.5, 0.8]}
    """
    describe = partial(plain_settings, strict=strict)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [describe(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted((describe(entry) for entry in value), key=str)
    if isinstance(value, partial):
        return {
            "function": describe(value.func),
            "arguments": describe(value.args),
            "keywords": describe(value.keywords),
        }
    if inspect.ismethod(value) and not isinstance(value.__self__, type):
        return {"method": value.__func__.__qualname__, "of": describe(value.__self__)}
    if hasattr(value, "__qualname__"):
        name = f"{value.__module__}.{value.__qualname__}"
        if strict and ("<" in name or value.__module__ == "__main__"):
            raise UnknownPartError(f"{name} has no name that other processes know")
        return name
    attributes = _attributes(value)
    if attributes is None:
        if strict:
            raise UnknownPartError(f"{type(value).__qualname__} is no part with settings")
        attributes = {k: v for k, v in getattr(value, "__dict__", {}).items() if k[0] != "_"}
    return {"class": describe(type(value)), **describe(attributes)}


def _attributes(value: Any) -> dict[str, Any] | None:
    """Return the settings of a dataclass, a module or an object with `arguments`, else None."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, nn.Module):
        own = {k: v for k, v in vars(value).items() if k[0] != "_" and k != "training"}
        tensors = (*value.named_parameters(recurse=False), *value.named_buffers(recurse=False))
        hashes = {name: _hash(tensor) for name, tensor in tensors}
        return own | dict(value.named_children()) | ({"tensors": hashes} if hashes else {})
    if callable(arguments := getattr(value, "arguments", None)):
        return dict(arguments())
    return None


def _hash(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    described = f"{tensor.dtype}{list(tensor.shape)}".encode()
    return hashlib.sha256(described + content).hexdigest()[:16]
