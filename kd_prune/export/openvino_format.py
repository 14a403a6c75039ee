"""OpenVINO: an intermediate representation of the model, for OpenVINO's runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune.errors import ConfigError
from kd_prune.export.onnx_format import (
    TOLERANCE,
    Logits,
    check_outputs,
    example_inputs,
    input_names,
    largest_difference,
    quiet,
    require,
)

FILE = "openvino_model.xml"
"""Name that Optimum looks for."""
PACKAGES = ("openvino",)


def check_installed() -> None:
    """Raise ConfigError unless OpenVINO is installed."""
    require("openvino", PACKAGES, "openvino")


def save_openvino(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write config and OpenVINO model (XML and BIN) of a model to an existing folder.

    Batch size and length are dynamic. The result is run once, in float32 and on other sizes than it
    was traced with, and compared with the model.

    Args:
        model: The model; it becomes float32.
        tokenizer: Its tokenizer.
        folder: The folder.

    Raises:
        ConfigError: OpenVINO is not installed, or the result does not compute what the model does.
    """
    check_installed()
    import openvino  # type: ignore[import-not-found, unused-ignore]

    nn.Module.float(model)
    converted = convert(model, input_names(model, tokenizer))
    openvino.save_model(converted, folder / FILE, compress_to_fp16=False)
    model.config.save_pretrained(folder)


def convert(model: PreTrainedModel, names: tuple[str, ...]) -> Any:
    """Convert a model to an ``openvino.Model``, and check what it computes.

    Args:
        model: The model, in float32.
        names: Its inputs; the result has inputs of these names and the output ``logits``.

    Raises:
        ConfigError: OpenVINO cannot convert the model, or the result does not compute what it does.
    """
    import openvino

    check_outputs(model, names, "openvino")
    examples = example_inputs(names, model.config.vocab_size)
    try:
        with quiet(), torch.no_grad():
            converted = openvino.convert_model(
                Logits(model, names),
                example_input=tuple(examples.values()),
                input=[openvino.PartialShape([-1, -1]) for _ in names],
            )
    except Exception as error:  # of any type, from the tracer too
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            "format", "openvino", f"it cannot convert {type(model).__name__} ({reason})"
        ) from error
    for port, name in zip(converted.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    converted.outputs[0].get_tensor().set_names({"logits"})
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = example_inputs(names, model.config.vocab_size, rows=3, length=11)
    found = compiled({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
    difference = largest_difference(model, names, torch.from_numpy(found))
    if not difference <= TOLERANCE:
        raise ConfigError(
            "format",
            "openvino",
            f"the converted {type(model).__name__} differs from it by {difference:.1e}",
        )
    return converted
