"""Distillation: losses, terms, layer maps and the objective. Torch only."""

from kd_prune.distillation.activations import Activations
from kd_prune.distillation.hidden_states import Embeddings, HiddenStates
from kd_prune.distillation.layer_map import layer_pairs
from kd_prune.distillation.losses import (
    attention_score_mse,
    hard_label_loss,
    hidden_state_mse,
    soft_cross_entropy,
)
from kd_prune.distillation.objective import Objective
from kd_prune.distillation.terms import (
    AttentionScores,
    Custom,
    HardLabels,
    SoftTargets,
    Term,
)

__all__ = [
    "Activations",
    "AttentionScores",
    "Custom",
    "Embeddings",
    "HardLabels",
    "HiddenStates",
    "Objective",
    "SoftTargets",
    "Term",
    "attention_score_mse",
    "hard_label_loss",
    "hidden_state_mse",
    "layer_pairs",
    "soft_cross_entropy",
]
