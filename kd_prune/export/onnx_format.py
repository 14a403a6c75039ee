"""ONNX: a graph with weights for ONNX Runtime, in float32 or with int8 weights."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune.errors import ConfigError

FILE = "model.onnx"
OPSET = 23
"""Operator set of the exported graph: the newest that torch 2.13's exporter writes."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def check_installed() -> None:
    """Raise ConfigError unless the packages for ONNX are installed."""
    require("onnx", PACKAGES, "kd_prune[onnx]")


def require(form: str, packages: tuple[str, ...], extra: str) -> None:
    """Raise ConfigError, with what to install, if one of a format's packages is missing."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            "format", form, f"needs the package {', '.join(missing)}", f"pip install '{extra}'"
        )


class Logits(nn.Module):
    """A model as a function of named tensors that returns its logits, or its last hidden state."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the output for tensors in the order of `names`."""
        outputs = self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True)
        result: Tensor = outputs["logits" if "logits" in outputs else "last_hidden_state"]
        return result


def input_names(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the inputs that both the tokenizer gives and the model takes, in a fixed order."""
    taken = inspect.signature(type(model).forward).parameters
    return tuple(name for name in INPUTS if name in taken and name in tokenizer.model_input_names)


def example_inputs(names: tuple[str, ...], vocabulary: int) -> dict[str, Tensor]:
    """Return example inputs, two rows of different length."""
    ids = torch.arange(16).reshape(2, 8) % min(vocabulary, 16)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: known[name] for name in names}


def save_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    int8: bool = False,
) -> None:
    """Write config and ONNX graph of a model to an existing folder.

    Batch size and length are dynamic. The graph is run once in ONNX Runtime, with another batch
    size and length than it was traced with, and compared with the model.

    Args:
        model: The model; it does not change.
        tokenizer: Its tokenizer.
        folder: The folder.
        int8: Quantize the matrices to int8, with the activations quantized while it runs
            (ONNX Runtime's ``quantize_dynamic``).

    Raises:
        ConfigError: A package is missing, or the graph does not compute what the model does.
    """
    check_installed()
    names = input_names(model, tokenizer)
    nn.Module.float(model)
    examples = example_inputs(names, model.config.vocab_size)
    file = folder / FILE
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            Logits(model, names),
            tuple(examples.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["logits"],
            dynamic_shapes=(tuple(sizes for _ in names),),
            verbose=False,
        )
    if program is None:  # only without dynamo
        raise ConfigError("format", "onnx", f"torch could not export {type(model).__name__}")
    program.save(str(file), external_data=False)
    model.config.save_pretrained(folder)
    check_outputs(model, names, file)
    if int8:
        quantize_int8(file)


def check_outputs(model: PreTrainedModel, names: tuple[str, ...], file: Path) -> None:
    """Compare a graph with its model, on other sizes than it was traced with.

    Raises:
        ConfigError: The outputs differ by more than 1e-4.
    """
    from onnxruntime import InferenceSession

    ids = torch.arange(33).reshape(3, 11) % min(model.config.vocab_size, 16)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: known[name].numpy() for name in names})[0]
    with torch.no_grad():
        expected = Logits(model, names)(*(known[name] for name in names)).numpy()
    difference = (
        float(abs(found - expected)[mask.numpy().astype(bool)].max())
        if (found.ndim == 3)
        else float(abs(found - expected).max())
    )
    if not difference <= 1e-4:
        raise ConfigError(
            "format", "onnx", f"the exported graph differs from the model by {difference:.1e}"
        )


def quantize_int8(file: Path) -> None:
    """Replace a graph by its int8 form, as ONNX Runtime's own quantizer makes it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    scratch = file.with_name("int8.onnx")
    with quiet():
        quantize_dynamic(file, scratch, weight_type=QuantType.QInt8)
    scratch.replace(file)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters from printing their progress and their advice."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
