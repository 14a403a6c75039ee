"""ONNX Runtime: the model's graph in float32, and quantized by its own dynamic quantizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_prune.export import onnx_format
from kd_prune.inference.benchmark import Batch, Engine
from kd_prune.inference.rivals.base import INPUTS

FLOAT32, INT8 = "ONNX Runtime fp32", "ONNX Runtime int8"


class OnnxRuntime:
    """ONNX Runtime on the graph that ``kd-prune export --format onnx`` writes.

    int8 is `onnxruntime.quantization.quantize_dynamic`: int8 weights with a scale per matrix, and
    inputs quantized to uint8 in every call.
    """

    name = "onnxruntime"
    packages: tuple[str, ...] = onnx_format.PACKAGES
    install = "'kd_prune[onnx]'"
    reads_zeros = False  # zeros in an initializer are multiplied like other values

    def engines(
        self, model: Any, work: Sequence[Batch], threads: int
    ) -> Iterator[tuple[str, Engine]]:
        """Build the engine in float32, then that in int8."""
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / onnx_format.FILE
            onnx_format.write_graph(model, INPUTS, file)
            yield FLOAT32, Session(file, threads)
            onnx_format.quantize_int8(file)
            yield INT8, Session(file, threads)


class Session:
    """A graph in ONNX Runtime.

    Its threads stop spinning when a call ends, so that they do not take time from the next engine.
    """

    def __init__(self, file: Path, threads: int) -> None:
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def __call__(self, **batch: Tensor) -> tuple[Tensor, ...]:
        """Return the model's first output."""
        outputs = self.session.run(None, {name: batch[name].numpy() for name in INPUTS})
        return (torch.from_numpy(outputs[0]),)
