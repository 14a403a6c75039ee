"""accelerate: the same model, its sparse layers on sparse kernels."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, TypeVar

import torch
from torch import nn

from kd_prune.errors import ConfigError, ConfigTypeError
from kd_prune.inference import library
from kd_prune.inference.blocks import Block, is_hooked, read
from kd_prune.inference.crossover import Choice
from kd_prune.inference.linear import NO_TRAINING, SparseLinear
from kd_prune.inference.packing import MOST_COLUMNS
from kd_prune.inference.quantized import QuantizedMatrix
from kd_prune.inference.stack import FusedLayers

Model = TypeVar("Model", bound=nn.Module)


def accelerate(
    model: Model,
    *,
    minimum_sparsity: float | None = None,
    int8: bool = False,
    inplace: bool = False,
) -> Model:
    """Return a model that computes the same, faster where its matrices are sparse.

    Neighbouring blocks of BERT, RoBERTa, ELECTRA and DistilBERT become one call of a kernel; any
    other `torch.nn.Linear` without hooks becomes a `SparseLinear`. A layer is converted where that
    gains: the product with and without zeros is timed once for every shape of a matrix. What stays
    dense shares its memory with `model`. Outputs differ by rounding, about 1e-6 of their size;
    those of the converted layers depend neither on the number of threads nor on the batch.

    With `int8`, matrices whose zeros leave half of their 1×4 blocks (four neighbouring inputs of an
    output) empty are rounded to int8, and so are their inputs: faster still, but outputs change by
    one to a few hundredths of their size. Weights have a scale per row; inputs one per token and
    768 features, chosen as they come. A processor that would not gain computes in float32.

    The result is for inference: it refuses training and inputs that need gradients.

    Args:
        model: A model with float32 weights on the CPU.
        minimum_sparsity: Share of zeros from which a layer is converted, instead of measuring:
            the same layers on every machine. 0 converts all.
        int8: Round what gains from it to int8.
        inplace: Change `model` itself.

    Returns:
        The accelerated model, in eval mode; `report` says what was converted.

    Raises:
        ConfigError: llvmlite is not installed, or a weight is not float32 on the CPU.
    """
    check(model, minimum_sparsity)
    library.kernels()
    choice = Choice(minimum_sparsity, int8)
    if not inplace:
        shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        model = copy.deepcopy(model, shared)
    model.eval()
    _fuse(model, choice)
    _replace_linears(model, choice)
    # Before a refused call has put a part of the layers into training mode.
    object.__setattr__(model, "train", partial(set_mode_unless_training, model))
    if hasattr(model, "save_pretrained"):
        object.__setattr__(model, "save_pretrained", refuse_saving)
    return model


def refuse_saving(*_: object, **__: object) -> NoReturn:
    """Refuse to write a folder without the weights of the sparse layers.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(
        "an accelerated model has no dense weights to save: save the model that it was made from"
    )


def set_mode_unless_training(model: nn.Module, mode: bool = True) -> nn.Module:
    """Set evaluation mode; refuse training mode before any module has changed.

    Raises:
        RuntimeError: `mode` is True.
    """
    if mode:
        raise RuntimeError(NO_TRAINING)
    return type(model).train(model, mode)


def check(model: nn.Module, minimum_sparsity: float | None) -> None:
    """Refuse what cannot be accelerated.

    Raises:
        ConfigError: As in `accelerate`.
    """
    if not isinstance(model, nn.Module):
        raise ConfigTypeError("model", model, "expected a torch.nn.Module")
    if minimum_sparsity is not None and not 0 <= minimum_sparsity <= 1:
        raise ConfigError("minimum_sparsity", minimum_sparsity, "expected a share in [0, 1]")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ConfigError(
                f"model.{name}",
                f"{parameter.dtype} on {parameter.device}",
                "expected torch.float32 on cpu",
                "convert it first: model.to('cpu', torch.float32)",
            )


def _fuse(model: nn.Module, choice: Choice) -> None:
    """Replace every list of known blocks that gain."""
    for parent in list(model.modules()):
        for name, layers in list(parent._modules.items()):
            if type(layers) is not nn.ModuleList:
                continue
            blocks = {index: read(layer) for index, layer in enumerate(layers)}
            gaining = {
                index: block
                for index, block in blocks.items()
                if block is not None and choice.gains(block.matrices)
            }
            if gaining:
                fused = FusedLayers(layers, gaining, choice)
                setattr(parent, name, fused)
                _convert_block_layers(gaining, layers, choice)


def _convert_block_layers(blocks: dict[int, Block], layers: nn.ModuleList, choice: Choice) -> None:
    """Convert each layer of fused blocks on its own too, so that none keeps its dense weights."""
    int8 = {
        id(layer): choice.in_int8(matrix)
        for block in blocks.values()
        for matrix in block.matrices
        for layer in matrix
    }
    for index in blocks:
        for parent in list(layers[index].modules()):
            for name, child in list(parent._modules.items()):
                if id(child) in int8 and isinstance(child, nn.Linear):
                    setattr(parent, name, SparseLinear(child, int8=int8[id(child)]))


def _replace_linears(model: nn.Module, choice: Choice) -> None:
    """Replace the other linear layers that gain; a layer used in two places stays one."""
    replaced: dict[int, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is not nn.Linear or child.in_features > MOST_COLUMNS or is_hooked(child):
                continue
            if id(child) not in replaced:
                gains = choice.gains([[child]])
                fast = SparseLinear(child, int8=choice.in_int8([child])) if gains else child
                replaced[id(child)] = fast
            if replaced[id(child)] is not child:
                setattr(parent, name, replaced[id(child)])
                if isinstance(parent, nn.TransformerEncoderLayer):
                    # Its own fast path reads the weights; False leads around it.
                    parent.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and replaced:
            module.use_nested_tensor = False  # that of padded rows, which only torch's layers take


@dataclass(frozen=True)
class Report:
    """What `accelerate` made of a model.

    Attributes:
        blocks: Encoder blocks that run inside of a fused kernel.
        sparse: Linear layers that run without their zeros, those of the blocks included.
        dense: Linear layers that stayed with torch.
        sparsity: Share of zeros among the weights of the sparse layers.
        int8: Sparse layers that compute in int8.
    """

    blocks: int
    sparse: int
    dense: int
    sparsity: float
    int8: int = 0

    def __str__(self) -> str:
        """Format one line."""
        int8 = f", {self.int8} of them in int8" if self.int8 else ""
        return (
            f"{self.sparse} of {self.sparse + self.dense} linear layers are sparse"
            f" ({self.sparsity:.1%} zeros){int8}, {self.blocks} blocks are fused"
        )


def report(model: nn.Module) -> Report:
    """Count what of a model runs on sparse kernels."""
    modules = list(model.modules())
    sparse = [module.packed for module in modules if isinstance(module, SparseLinear)]
    size = sum(matrix.in_features * matrix.out_features for matrix in sparse)
    kept = sum(matrix.nonzeros for matrix in sparse)
    return Report(
        blocks=sum(module.fused_blocks for module in modules if isinstance(module, FusedLayers)),
        sparse=len(sparse),
        dense=sum(isinstance(module, nn.Linear) for module in modules),
        sparsity=1 - kept / size if size else 0.0,
        int8=sum(isinstance(matrix, QuantizedMatrix) for matrix in sparse),
    )
