"""Pruning: schedules, criteria, masks, scopes and the Pruner. Torch and numpy only."""

from kd_prune.pruning.allocation import ERK, Bounded, Global, PerType, Threshold, layerwise
from kd_prune.pruning.criterion import (
    Movement,
    Platon,
    Random,
    SoftMovement,
    StatefulCriterion,
    Taylor,
    Wanda,
    magnitude,
)
from kd_prune.pruning.fisher import BlockFisher, DiagonalFisher
from kd_prune.pruning.heads import AttentionHeads
from kd_prune.pruning.mask import exact
from kd_prune.pruning.nm import NM
from kd_prune.pruning.plan import PruningPlan
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.report import SparsityReport
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.schedule import (
    Schedule,
    Stepwise,
    cosine,
    cubic,
    linear,
    one_shot,
    steady_plan,
    update_plan,
)
from kd_prune.pruning.scope import DefaultScope, Scope, default_scope
from kd_prune.pruning.tiles import Block, Heads, Rows

__all__ = [
    "ERK",
    "NM",
    "AttentionHeads",
    "Block",
    "BlockFisher",
    "Bounded",
    "DefaultScope",
    "DiagonalFisher",
    "Global",
    "Heads",
    "Movement",
    "PerType",
    "Platon",
    "Pruner",
    "PruningPlan",
    "Random",
    "RigL",
    "Rows",
    "Schedule",
    "Scope",
    "SoftMovement",
    "SparsityReport",
    "StatefulCriterion",
    "Stepwise",
    "Taylor",
    "Threshold",
    "Wanda",
    "cosine",
    "cubic",
    "default_scope",
    "exact",
    "layerwise",
    "linear",
    "magnitude",
    "one_shot",
    "steady_plan",
    "update_plan",
]
