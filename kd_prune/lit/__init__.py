"""Lightning parts: the pruning callback, the distilling module and callbacks around a fit."""

from kd_prune.lit.callback import SparsityCallback
from kd_prune.lit.checkpointing import ResumePoint
from kd_prune.lit.csv_history import History
from kd_prune.lit.module import DistillModule, NonFiniteError
from kd_prune.lit.progress_log import ProgressLog
from kd_prune.lit.replacement import LayerReplacement
from kd_prune.lit.rewind import RewindCallback

__all__ = [
    "DistillModule",
    "History",
    "LayerReplacement",
    "NonFiniteError",
    "ProgressLog",
    "ResumePoint",
    "RewindCallback",
    "SparsityCallback",
]
