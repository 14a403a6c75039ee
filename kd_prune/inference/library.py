"""The compiled kernels of this process, loaded when they are first needed."""

from __future__ import annotations

import importlib.util
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

from kd_prune.errors import ConfigError

if TYPE_CHECKING:
    from kd_prune.inference.jit.objects import Library


_LOADING = Lock()


def kernels() -> Library:
    """Return the kernels for the processor at hand, compiled or from the cache.

    Raises:
        ConfigError: llvmlite, which compiles them, is not installed.
    """
    with _LOADING:  # `cache` alone would let each of several threads load, and drop, its own
        return _load()


@cache
def _load() -> Library:
    if importlib.util.find_spec("llvmlite") is None:
        raise ConfigError(
            "llvmlite",
            expected="is not installed, and sparse inference compiles its kernels with it",
            hint="run pip install 'kd_prune[cpu]'",
        )
    from kd_prune.inference.kernels import load

    return load()
