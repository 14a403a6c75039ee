"""Prune while distilling: PyTorch Lightning parts for sparse transformer encoders.

The names below are imported when they are first used, so that each needs only its own packages:
`SparsityCallback` torch, numpy and Lightning, `Pruner`, `Schedule` and `Scope` torch and numpy.
Further parts are in `kd_prune.pruning`, `distillation`, `lit`, `hf`, `pipeline`, `inference` and
`export`.
Importing kd_prune also lets transformers read packed folders, without importing transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kd_prune import transformers_hook

if TYPE_CHECKING:
    from kd_prune.distillation import Objective
    from kd_prune.lit import DistillModule, SparsityCallback
    from kd_prune.pruning import Pruner, Schedule, Scope

__version__ = "0.1.0"
__all__ = ["DistillModule", "Objective", "Pruner", "Schedule", "Scope", "SparsityCallback"]

_MODULES = {
    "DistillModule": "lit",
    "Objective": "distillation",
    "Pruner": "pruning",
    "Schedule": "pruning",
    "Scope": "pruning",
    "SparsityCallback": "lit",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, those not yet imported too."""
    return sorted(__all__)


transformers_hook.install()
