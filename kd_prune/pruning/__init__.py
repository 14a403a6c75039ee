"""Pruning: schedules, criteria, masks, scopes and the Pruner. Torch and numpy only."""

from kd_prune.pruning.criterion import magnitude
from kd_prune.pruning.mask import Global, exact, layerwise
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.report import SparsityReport
from kd_prune.pruning.schedule import Schedule, cubic, linear, one_shot, update_plan
from kd_prune.pruning.scope import Scope

__all__ = [
    "Global",
    "Pruner",
    "Schedule",
    "Scope",
    "SparsityReport",
    "cubic",
    "exact",
    "layerwise",
    "linear",
    "magnitude",
    "one_shot",
    "update_plan",
]
