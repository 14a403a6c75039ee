"""Criteria: functions from a weight to a score of the same shape; larger = keep.

A criterion is a plain function ``weight → score``. One that needs gradients or inputs of earlier
steps is a `StatefulCriterion`: an immutable object whose state per tensor is kept, saved and loaded
by its caller. In the formulas ``w`` is a weight and ``g`` the gradient of the loss with respect to
it. States and scores are float32, whatever the dtype of the weight.
"""

from kd_prune.pruning.criteria.base import Criterion, State, StatefulCriterion, magnitude
from kd_prune.pruning.criteria.fisher import BlockFisher, DiagonalFisher
from kd_prune.pruning.criteria.gradient import Movement, Taylor
from kd_prune.pruning.criteria.platon import PLATON
from kd_prune.pruning.criteria.random_scores import Random
from kd_prune.pruning.criteria.soft_movement import SoftMovement
from kd_prune.pruning.criteria.wanda import Wanda

__all__ = [
    "PLATON",
    "BlockFisher",
    "Criterion",
    "DiagonalFisher",
    "Movement",
    "Random",
    "SoftMovement",
    "State",
    "StatefulCriterion",
    "Taylor",
    "Wanda",
    "magnitude",
]
