"""OpenVINO: the converted model in float32, in bfloat16, and quantized to int8 by NNCF."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.export import openvino_format
from kd_prune.export.onnx_format import quiet
from kd_prune.inference.benchmark import Batch, Engine
from kd_prune.inference.rivals.base import INPUTS

FLOAT32, BFLOAT16, INT8 = "OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8 (nncf)"
PRECISION = "INFERENCE_PRECISION_HINT"


class OpenVino:
    """OpenVINO on the model that ``kd-prune export --format openvino`` writes.

    bfloat16 is OpenVINO's default where the processor has it. int8 is NNCF's post-training
    quantization for transformers, of weights and activations, calibrated on the batches that are
    measured; what is not quantized runs in OpenVINO's default precision. Without the package nncf
    there is no int8: OpenVINO alone cannot quantize.
    """

    name = "openvino"
    packages: tuple[str, ...] = openvino_format.PACKAGES
    install = "openvino nncf"
    reads_zeros = False  # unless its sparse decompression is switched on, which gained nothing

    def engines(
        self, model: Any, work: Sequence[Batch], threads: int
    ) -> Iterator[tuple[str, Engine]]:
        """Build the engines in float32, bfloat16 where the processor has it, and int8."""
        import openvino

        converted = openvino_format.convert(model, INPUTS)
        yield FLOAT32, Compiled(converted, threads, {PRECISION: "f32"})
        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            yield BFLOAT16, Compiled(converted, threads, {PRECISION: "bf16"})
        yield INT8, Compiled(quantized(converted, work), threads, {})


class Compiled:
    """A model compiled by OpenVINO, for one call at a time."""

    def __init__(self, converted: Any, threads: int, settings: dict[str, Any]) -> None:
        import openvino

        common = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        common["INFERENCE_NUM_THREADS"] = threads
        self.compiled = openvino.compile_model(converted, "CPU", common | settings)

    def __call__(self, **batch: Tensor) -> tuple[Tensor, ...]:
        """Return the model's first output."""
        outputs = self.compiled({name: batch[name].numpy() for name in INPUTS})
        return (torch.from_numpy(outputs[0]),)


def quantized(converted: Any, work: Sequence[Batch]) -> Any:
    """Return an OpenVINO model with weights and activations in int8.

    Raises:
        ConfigError: nncf is not installed.
    """
    if importlib.util.find_spec("nncf") is None:
        raise ConfigError("int8", expected="needs the package nncf", hint="pip install nncf")
    printed = io.StringIO()
    with quiet(), contextlib.redirect_stdout(printed):  # it prints progress bars
        import nncf  # type: ignore[import-not-found, unused-ignore]

        logging.getLogger("nncf").setLevel(logging.ERROR)
        rows = [{name: batch[name].numpy() for name in INPUTS} for batch in work]
        return nncf.quantize(
            converted,
            nncf.Dataset(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(rows),
        )
