"""OpenVINO: an intermediate representation of the model, for OpenVINO's runtime."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune.export.onnx_format import Logits, example_inputs, input_names, quiet, require

FILE = "openvino_model.xml"
"""Name that Optimum looks for."""
PACKAGES = ("openvino",)


def check_installed() -> None:
    """Raise ConfigError unless OpenVINO is installed."""
    require("openvino", PACKAGES, "openvino")


def save_openvino(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write config and OpenVINO model (XML and BIN) of a model to an existing folder.

    Batch size and length are dynamic.

    Args:
        model: The model; it does not change.
        tokenizer: Its tokenizer.
        folder: The folder.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    check_installed()
    import openvino

    names = input_names(model, tokenizer)
    nn.Module.float(model)
    examples = example_inputs(names, model.config.vocab_size)
    with quiet(), torch.no_grad():
        converted = openvino.convert_model(
            Logits(model, names),
            example_input=tuple(examples.values()),
            input=[openvino.PartialShape([-1, -1]) for _ in names],
        )
    for port, name in zip(converted.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    converted.outputs[0].get_tensor().set_names({"logits"})
    openvino.save_model(converted, folder / FILE, compress_to_fp16=False)
    model.config.save_pretrained(folder)
