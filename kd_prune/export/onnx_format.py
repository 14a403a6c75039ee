"""ONNX: a graph with weights for ONNX Runtime, in float32 or with int8 weights."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune.errors import ConfigError

FILE = "model.onnx"
OPSETS = (23, 22)
"""Operator sets of the exported graph, the first that ONNX Runtime can run. 23 is the newest that
torch 2.13's exporter writes; ONNX Runtime 1.32 cannot run ModernBERT's rotary embedding in it."""
TOLERANCE = 1e-4
"""Largest difference to the model's outputs; of outputs above 1, relative to the largest."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
QUANTIZED = ("Conv", "Gather", "LSTM", "MatMul", "Transpose")
"""Operators with an int8 form. ONNX Runtime 1.32 would also quantize ONNX's Attention, which it
takes for its own operator of that name, and then refuses the graph."""
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


def check_outputs(model: PreTrainedModel, names: tuple[str, ...], form: str) -> None:
    """Raise ConfigError unless a model makes one of the outputs that `Logits` returns of tokens."""
    try:
        with torch.no_grad():
            outputs = model(**example_inputs(names, model.config.vocab_size), return_dict=True)
    except Exception as error:  # of any type: models check their inputs in their own ways
        raise ConfigError(
            "format",
            form,
            f"{type(model).__name__} does not take plain tokens ({error})",
            "take packed or fp16",
        ) from error
    if not {"logits", "last_hidden_state"} & set(outputs):
        raise ConfigError(
            "format",
            form,
            f"{type(model).__name__} has no logits, but {', '.join(outputs)}",
            "take packed or fp16",
        )


def input_names(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the inputs that both the tokenizer gives and the model takes, in a fixed order."""
    taken = inspect.signature(type(model).forward).parameters
    return tuple(name for name in INPUTS if name in taken and name in tokenizer.model_input_names)


def example_inputs(
    names: tuple[str, ...], vocabulary: int, *, rows: int = 2, length: int = 8
) -> dict[str, Tensor]:
    """Return example inputs; the last row is padded."""
    ids = torch.arange(rows * length).reshape(rows, length) % min(vocabulary, 16)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
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
        model: The model; it becomes float32.
        tokenizer: Its tokenizer.
        folder: The folder.
        int8: Quantize the matrices to int8, with the activations quantized while it runs
            (ONNX Runtime's ``quantize_dynamic``).

    Raises:
        ConfigError: A package is missing, or the graph does not compute what the model does.
    """
    check_installed()
    nn.Module.float(model)
    names, file = input_names(model, tokenizer), folder / FILE
    write_graph(model, names, file)
    if int8:
        quantize_int8(file)
        found = run_graph(model, names, file)
        if found is None or not found.isfinite().all():
            raise ConfigError(
                "int8", True, f"the int8 graph of {type(model).__name__} does not run"
            )
    model.config.save_pretrained(folder)


def write_graph(model: PreTrainedModel, names: tuple[str, ...], file: Path) -> None:
    """Write the ONNX graph of a model in the newest operator set that ONNX Runtime can run.

    Args:
        model: The model, in float32.
        names: Its inputs, some of `INPUTS`.
        file: The file to write.

    Raises:
        ConfigError: The model has no output that is exported, torch cannot export it, or the graph
            does not compute what it does.
    """
    check_outputs(model, names, "onnx")
    for opset in OPSETS:
        export_graph(model, names, file, opset)
        found = run_graph(model, names, file)
        if found is not None:
            break
    difference = math.inf if found is None else largest_difference(model, names, found)
    if not difference <= TOLERANCE:
        said = "does not run" if found is None else f"differs from it by {difference:.1e}"
        raise ConfigError("format", "onnx", f"the graph of {type(model).__name__} {said}")


def export_graph(model: PreTrainedModel, names: tuple[str, ...], file: Path, opset: int) -> None:
    """Trace a model and write its graph with its weights.

    Raises:
        ConfigError: torch cannot export it.
    """
    examples = example_inputs(names, model.config.vocab_size)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                Logits(model, names),
                tuple(examples.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=(tuple(sizes for _ in names),),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            "format", "onnx", f"torch cannot export {type(model).__name__} ({reason})"
        ) from error
    assert program is not None  # noqa: S101  None without dynamo only
    program.save(str(file), external_data=False)


def run_graph(model: PreTrainedModel, names: tuple[str, ...], file: Path) -> Tensor | None:
    """Run a graph on other sizes than it was traced with; None if ONNX Runtime cannot run it."""
    from onnxruntime import InferenceSession
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    inputs = example_inputs(names, model.config.vocab_size, rows=3, length=11)
    try:
        session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        return torch.from_numpy(session.run(None, arrays)[0])
    except (
        ort.Fail,
        ort.InvalidArgument,
        ort.InvalidGraph,
        ort.NotImplemented,
        ort.RuntimeException,
    ):
        return None


def largest_difference(model: PreTrainedModel, names: tuple[str, ...], found: Tensor) -> float:
    """Return the largest difference of an output for these sizes to the model's, over real tokens.

    Of outputs above 1 it is relative to the largest of them.

    Args:
        model: The model.
        names: Its inputs.
        found: The output for `example_inputs` of 3 rows of 11 tokens.
    """
    inputs = example_inputs(names, model.config.vocab_size, rows=3, length=11)
    with torch.no_grad():
        expected = Logits(model, names)(*inputs.values())
    if expected.ndim > 2:  # states of tokens; those of padding mean nothing
        real = inputs["attention_mask"].bool()
        found, expected = found[real], expected[real]
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def quantize_int8(file: Path) -> None:
    """Replace a graph by its int8 form, as ONNX Runtime's own quantizer makes it.

    ONNX's Attention, of operator set 23, stays as it is: the quantizer takes it for an operator of
    ONNX Runtime with the same name, and writes a graph that cannot be loaded.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    scratch = file.with_name("int8.onnx")
    with quiet():
        quantize_dynamic(
            file, scratch, weight_type=QuantType.QInt8, op_types_to_quantize=list(QUANTIZED)
        )
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
