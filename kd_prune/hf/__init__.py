"""Hugging Face parts: encoders, tasks, data, export."""

from kd_prune.hf.attention import enable_attention_scores
from kd_prune.hf.augmentation import Augmentation
from kd_prune.hf.batches import LengthGroupedBatches, ResumableLoader, loaders
from kd_prune.hf.changes import EncoderChange
from kd_prune.hf.data import TaskData, load_data
from kd_prune.hf.elmo import OWN_ARCHITECTURES, ElmoConfig
from kd_prune.hf.encoders import (
    PretrainedEncoder,
    folder_or_id,
    has_head,
    load_error,
    may_be_hub_id,
)
from kd_prune.hf.export import save
from kd_prune.hf.fingerprint import model_fingerprint
from kd_prune.hf.forward_pass import SEGMENTS, accepts_token_type_ids, forward
from kd_prune.hf.freezing import freeze
from kd_prune.hf.kinds import (
    Classification,
    LanguageModel,
    MaskedWords,
    QuestionAnswering,
    Regression,
    TaskKind,
    Text,
)
from kd_prune.hf.layers import (
    encoder_layers,
    encoder_scope,
    encoder_weights,
    max_positions,
    set_dropout,
)
from kd_prune.hf.optimizer import AdamWWithSchedule
from kd_prune.hf.pairs import check_pair, check_vocabularies
from kd_prune.hf.reading import MissingSplitError
from kd_prune.hf.tasks import Task, as_language_model, as_text

__all__ = [
    "OWN_ARCHITECTURES",
    "SEGMENTS",
    "AdamWWithSchedule",
    "Augmentation",
    "Classification",
    "ElmoConfig",
    "EncoderChange",
    "LanguageModel",
    "LengthGroupedBatches",
    "MaskedWords",
    "MissingSplitError",
    "PretrainedEncoder",
    "QuestionAnswering",
    "Regression",
    "ResumableLoader",
    "Task",
    "TaskData",
    "TaskKind",
    "Text",
    "accepts_token_type_ids",
    "as_language_model",
    "as_text",
    "check_pair",
    "check_vocabularies",
    "enable_attention_scores",
    "encoder_layers",
    "encoder_scope",
    "encoder_weights",
    "folder_or_id",
    "forward",
    "freeze",
    "has_head",
    "load_data",
    "load_error",
    "loaders",
    "max_positions",
    "may_be_hub_id",
    "model_fingerprint",
    "save",
    "set_dropout",
]
