"""Pruning in PyTorch: schedules, criteria, allocations, granularities, scopes and the Pruner."""

from kd_prune.pruning.allocation import (
    ERK,
    Bounded,
    Global,
    GroupAllocation,
    MeanScore,
    Threshold,
    uniform,
)
from kd_prune.pruning.chosen_scope import DefaultScope, default_scope
from kd_prune.pruning.criteria import (
    PLATON,
    BlockFisher,
    DiagonalFisher,
    Movement,
    Random,
    SoftMovement,
    StatefulCriterion,
    Taylor,
    Wanda,
    magnitude,
)
from kd_prune.pruning.granularity import NM, AttentionHeads, Block, Heads, Rows
from kd_prune.pruning.layer_trace import LayerTrace, trace_layers
from kd_prune.pruning.preview import PruningPreview
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.ramps import Stepwise, cosine, cubic, linear, one_shot
from kd_prune.pruning.report import SparsityReport
from kd_prune.pruning.rigl import RigL
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.scope import Scope
from kd_prune.pruning.selection import unstructured
from kd_prune.pruning.sharded_pruner import ShardedPruner
from kd_prune.pruning.update_schedule import (
    last_update,
    lasting_updates,
    periodic_updates,
    ramp_updates,
)

__all__ = [
    "ERK",
    "NM",
    "PLATON",
    "AttentionHeads",
    "Block",
    "BlockFisher",
    "Bounded",
    "DefaultScope",
    "DiagonalFisher",
    "Global",
    "GroupAllocation",
    "Heads",
    "LayerTrace",
    "MeanScore",
    "Movement",
    "Pruner",
    "PruningPreview",
    "Random",
    "RigL",
    "Rows",
    "Schedule",
    "Scope",
    "ShardedPruner",
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
    "last_update",
    "lasting_updates",
    "linear",
    "magnitude",
    "one_shot",
    "periodic_updates",
    "ramp_updates",
    "trace_layers",
    "uniform",
    "unstructured",
]
