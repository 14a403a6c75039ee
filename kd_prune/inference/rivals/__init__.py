"""Other ways to run a model on a CPU, for comparison; each where its packages are installed."""

from kd_prune.inference.rivals.base import Failure, Rival, build, installed, missing
from kd_prune.inference.rivals.onnx_runtime import OnnxRuntime
from kd_prune.inference.rivals.openvino_runtime import OpenVino
from kd_prune.inference.rivals.sparselab_layers import SparseLab

RIVALS: tuple[Rival, ...] = (OnnxRuntime(), OpenVino(), SparseLab())
"""All of them, in the order of a table."""

__all__ = [
    "RIVALS",
    "Failure",
    "OnnxRuntime",
    "OpenVino",
    "Rival",
    "SparseLab",
    "build",
    "installed",
    "missing",
]
