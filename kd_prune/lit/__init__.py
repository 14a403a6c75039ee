"""Lightning parts: the pruning callback, the distilling module and what keeps a run safe."""

from kd_prune.lit.callback import SparsityCallback
from kd_prune.lit.history import History
from kd_prune.lit.metrics import metric_collection
from kd_prune.lit.module import DistillModule, NonFiniteError
from kd_prune.lit.resume import ResumePoint
from kd_prune.lit.rewind import RewindCallback

__all__ = [
    "DistillModule",
    "History",
    "NonFiniteError",
    "ResumePoint",
    "RewindCallback",
    "SparsityCallback",
    "metric_collection",
]
