"""Kinds of task, one file each: head, labels, collator, predictions, loss and metrics of a kind."""

from kd_prune.hf.kinds.base import (
    Labels,
    PaddingCollator,
    TaskFields,
    TaskKind,
    encode_texts,
    kind_name,
)
from kd_prune.hf.kinds.classification import Classification
from kd_prune.hf.kinds.language_model import LanguageModel
from kd_prune.hf.kinds.masked_words import MaskedWords
from kd_prune.hf.kinds.question_answering import QuestionAnswering
from kd_prune.hf.kinds.regression import Regression
from kd_prune.hf.kinds.text import Text

__all__ = [
    "Classification",
    "Labels",
    "LanguageModel",
    "MaskedWords",
    "PaddingCollator",
    "QuestionAnswering",
    "Regression",
    "TaskFields",
    "TaskKind",
    "Text",
    "encode_texts",
    "kind_name",
]
