"""Hugging Face parts: models, tasks, data, export. The only place that knows transformers."""

from kd_prune.hf.data import LengthGroupedBatches, TaskData, load, loaders
from kd_prune.hf.export import save
from kd_prune.hf.models import Pretrained, encoder_scope, forward
from kd_prune.hf.optimizer import FineTuning
from kd_prune.hf.tasks import Task

__all__ = [
    "FineTuning",
    "LengthGroupedBatches",
    "Pretrained",
    "Task",
    "TaskData",
    "encoder_scope",
    "forward",
    "load",
    "loaders",
    "save",
]
