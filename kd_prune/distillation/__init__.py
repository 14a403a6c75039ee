"""Distillation: losses, terms, layer maps and the objective. Torch only."""

from kd_prune.distillation.activations import Activations
from kd_prune.distillation.hidden_states import (
    Embeddings,
    HiddenStates,
    LastHiddenStateCosine,
    PatientStates,
)
from kd_prune.distillation.layer_map import layer_pairs
from kd_prune.distillation.losses import (
    attention_score_mse,
    cosine_distance,
    hard_label_loss,
    hidden_state_mse,
    patient_mse,
    relation_kl,
    soft_cross_entropy,
)
from kd_prune.distillation.objective import Objective
from kd_prune.distillation.relations import HeadRelations
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
    "HeadRelations",
    "HiddenStates",
    "LastHiddenStateCosine",
    "Objective",
    "PatientStates",
    "SoftTargets",
    "Term",
    "attention_score_mse",
    "cosine_distance",
    "hard_label_loss",
    "hidden_state_mse",
    "layer_pairs",
    "patient_mse",
    "relation_kl",
    "soft_cross_entropy",
]
