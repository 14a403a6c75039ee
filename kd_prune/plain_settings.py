"""plain_settings: objects such as criteria and schedules as plain data, for fingerprints."""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

INSTALLED = [
    Path(__file__).parent,
    *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")),
]
"""Folders of code that is told apart by its version, or by `source_hash`."""


class UnknownPartError(ValueError):
    """An object has no description that is the same in every process."""


def plain_settings(value: Any) -> Any:
    """Describe a value by names, numbers, lists and dicts that are equal for equal settings.

    Functions and classes become ``module.name``; those that are part of no installed package also
    have a hash of their file, so that a change of it is a change of settings. Dataclasses, modules
    and objects with a method `arguments` become ``{"class": module.name, …}`` with their fields or
    arguments, and a hash of each parameter and buffer of a module under ``tensors``.

    Raises:
        UnknownPartError: The description may differ between processes: of a function that is
            defined inside a function or in a script, and of any other object.

    >>> plain_settings({"activation": nn.functional.relu, "milestones": (0.5, 0.8)})
    {'activation': 'torch.nn.functional.relu', 'milestones': [0.5, 0.8]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return plain_settings(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain_settings(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [plain_settings(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted((plain_settings(entry) for entry in value), key=str)
    if isinstance(value, partial):
        return {
            "function": plain_settings(value.func),
            "arguments": plain_settings(value.args),
            "keywords": plain_settings(value.keywords),
        }
    if inspect.ismethod(value) and not isinstance(value.__self__, type):
        return {"method": value.__func__.__qualname__, "of": plain_settings(value.__self__)}
    if hasattr(value, "__qualname__"):
        name = f"{value.__module__}.{value.__qualname__}"
        if "<" in name or value.__module__ == "__main__":
            raise UnknownPartError(f"{name} has no name that other processes know")
        source = _source(value.__module__)
        return f"{name} (source {source})" if source else name
    attributes = _attributes(value)
    if attributes is None:
        raise UnknownPartError(f"{type(value).__qualname__} is no part with settings")
    return {"class": plain_settings(type(value)), **plain_settings(attributes)}


@cache
def _source(module: str) -> str:
    """Hash the file of a module; empty for one of an installed package, or without a file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or any(Path(file).is_relative_to(folder) for folder in INSTALLED):
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


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
