"""FusedLayers: the blocks of an encoder, run by one kernel from the first to the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from kd_prune.inference.blocks import Block, is_watched
from kd_prune.inference.crossover import Choice
from kd_prune.inference.layout import ACTIVATIONS, GROUP_ROWS, EncoderCall, Team
from kd_prune.inference.linear import check_input
from kd_prune.inference.packing import PackedMatrix, pack
from kd_prune.inference.quantized import quantize, quantized_groups
from kd_prune.inference.workspace import call, float_slot, plan, workspace

MOST_TOKENS = 2048
"""Tokens of a call; larger batches are cut between sequences, so that tiles stay in the cache."""
BY_NAME = ("encoder_hidden_states", "encoder_attention_mask", "past_key_values")
"""Arguments of a block that belong to decoders; the kernel knows none of them."""
MASKED = torch.finfo(torch.float32).min


@dataclass
class PackedBlock:
    """A block of an encoder as the kernel reads it; queries, keys and values are one matrix."""

    query_key_value: PackedMatrix
    output: PackedMatrix
    up: PackedMatrix
    down: PackedMatrix
    attention_norm: tuple[Tensor, Tensor, float]
    final_norm: tuple[Tensor, Tensor, float]
    heads: int
    activation: str

    @classmethod
    def of(cls, block: Block, choice: Choice) -> PackedBlock:
        """Pack the layers of a block, in int8 where that is the choice."""

        def packed(*layers: nn.Linear) -> PackedMatrix:
            return (quantize if choice.in_int8(layers) else pack)(layers)

        return cls(
            query_key_value=packed(block.query, block.key, block.value),
            output=packed(block.output),
            up=packed(block.up),
            down=packed(block.down),
            attention_norm=norm(block.attention_norm),
            final_norm=norm(block.final_norm),
            heads=block.heads,
            activation=block.activation,
        )

    @property
    def matrices(self) -> tuple[PackedMatrix, ...]:
        """Return the matrices in the kernel's order."""
        return (self.query_key_value, self.output, self.up, self.down)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Return what the blocks of one call have in common."""
        sizes = [(matrix.out_features, matrix.in_features) for matrix in self.matrices]
        return (*sizes, self.heads, self.activation)

    def record(self) -> list[int]:
        """Return the kernel's description of the block."""
        record = [slot for matrix in self.matrices for slot in matrix.record.tolist()]
        for weight, bias, epsilon in (self.attention_norm, self.final_norm):
            record += [weight.data_ptr(), bias.data_ptr(), float_slot(epsilon)]
        return record


def norm(layer: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    """Return weight, bias and epsilon of a layer norm."""
    weight, bias = (tensor.detach().float().contiguous() for tensor in (layer.weight, layer.bias))
    return weight, bias, layer.eps


class FusedBlocks(nn.Module):
    """Computes neighbouring encoder blocks of one shape in one call of a kernel."""

    def __init__(self, blocks: list[Block], choice: Choice) -> None:
        super().__init__()
        self.blocks = [PackedBlock.of(block, choice) for block in blocks]
        self.training = False

    @cached_property
    def table(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the kernel's description of the blocks; valid as long as they are."""
        return np.array([block.record() for block in self.blocks], dtype=np.int64)

    @cached_property
    def groups(self) -> tuple[int, int]:
        """Return the groups of a token's quantized inputs: of all matrices but the last, of all."""
        narrow = max(
            quantized_groups(matrix) for block in self.blocks for matrix in block.matrices[:3]
        )
        return narrow, narrow + max(quantized_groups(block.down) for block in self.blocks)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without addresses, for copies and pickles."""
        return {name: value for name, value in self.__dict__.items() if name != "table"}

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return the states after the last block.

        Args:
            hidden: States ``[batch, length, features]``, float32.
            mask: Number added to the score of every key ``[batch, length]``, or of a shape that is
                broadcast to it; None adds nothing.
        """
        check_input(hidden)
        hidden = hidden.contiguous()
        output = torch.empty_like(hidden)
        batch, length, _ = hidden.shape
        if not output.numel():
            return output
        if mask is not None:
            mask = mask.expand(batch, length).contiguous()
        keys = key_counts(mask, batch, length)
        step = max(1, MOST_TOKENS // length)
        for first in range(0, batch, step):
            chosen = slice(first, first + step)
            masks = None if mask is None else mask[chosen]
            self._run(hidden[chosen], output[chosen], masks, keys[chosen])
        return output

    def _run(self, hidden: Tensor, output: Tensor, mask: Tensor | None, keys: Tensor) -> None:
        batch, length, features = hidden.shape
        block = self.blocks[0]
        inner, wide = block.output.in_features, block.up.out_features
        head_size = inner // block.heads
        tokens = batch * length
        work = sum(matrix.steps for matrix in block.matrices)
        chosen = plan(tokens, work)
        padded = chosen.tiles * chosen.width
        # A head's copies of keys, values, queries, contexts; sums; scores.
        stride = (length + 15) // 16 * 16 + 16
        scratch = head_size * (2 * stride + 2 * chosen.width + 16) + (length + 1) * chosen.width
        scratch = (scratch + 31) // 16 * 16
        table = self.table  # held until the kernel returns: another thread may make one too
        narrow, quantized = (groups * GROUP_ROWS * chosen.width for groups in self.groups)
        sizes = [
            *(padded * features, padded * 3 * inner, padded * inner, padded * features),
            *(chosen.owners * chosen.width * wide, chosen.threads * scratch),
            chosen.owners * quantized,
        ]
        with workspace(sizes) as places:
            arguments = {
                EncoderCall.INPUT: hidden.data_ptr(),
                EncoderCall.OUTPUT: output.data_ptr(),
                EncoderCall.BATCH: batch,
                EncoderCall.LENGTH: length,
                EncoderCall.MASK: 0 if mask is None else mask.data_ptr(),
                EncoderCall.KEYS: keys.data_ptr(),
                EncoderCall.LAYERS: len(self.blocks),
                EncoderCall.TABLE: table.ctypes.data,
                EncoderCall.HIDDEN: features,
                EncoderCall.HEADS: block.heads,
                EncoderCall.HEAD_SIZE: head_size,
                EncoderCall.FEED_FORWARD: wide,
                EncoderCall.ACTIVATION: ACTIVATIONS.index(block.activation),
                EncoderCall.SCALE: float_slot(head_size**-0.5),
                EncoderCall.STATES: places[0],
                EncoderCall.PROJECTED: places[1],
                EncoderCall.CONTEXT: places[2],
                EncoderCall.MIDDLE: places[3],
                EncoderCall.WIDE: places[4],
                EncoderCall.SCRATCH: places[5],
                EncoderCall.SCRATCH_SIZE: scratch,
                EncoderCall.QUANTIZED: places[6],
                EncoderCall.QUANTIZED_SIZE: quantized,
                EncoderCall.QUANTIZED_WIDE: narrow,
            }
            slots = [arguments[EncoderCall(slot)] for slot in range(len(Team), EncoderCall.SLOTS)]
            call("encoder", chosen, tokens, slots)


def key_counts(mask: Tensor | None, batch: int, length: int) -> Tensor:
    """Return how many keys of each sequence there are up to the last that is not masked.

    A sequence that is masked throughout counts whole: its keys all weigh the same.
    """
    if mask is None:
        return torch.full((batch,), length, dtype=torch.int64)
    positions = torch.arange(1, length + 1) * (mask > MASKED / 2)
    counts = positions.amax(1)
    return torch.where(counts == 0, length, counts)


def key_mask(mask: Tensor | None) -> tuple[bool, Tensor | None]:
    """Read an attention mask of transformers as a number per key.

    Returns:
        Whether it is one, and the numbers ``[batch, length]``, where a dimension may be 1 to be
        broadcast; or None where nothing is masked.
    """
    if mask is None:
        return True, None
    if not isinstance(mask, Tensor):  # of flex attention
        return False, None
    if mask.dim() == 4 and mask.shape[1] == 1:
        rows = mask[:, 0]
        if mask.stride(2) and mask.shape[2] > 1 and not (rows == rows[:, :1]).all():
            return False, None
        mask = rows[:, 0]
    if mask.dim() != 2:
        return False, None
    if mask.dtype == torch.bool:
        return True, torch.zeros(mask.shape, dtype=torch.float32).masked_fill_(~mask, MASKED)
    return True, mask.float().clamp_min(MASKED).contiguous()


class FusedLayers(nn.ModuleList):
    """The blocks of an encoder: indexed, they are what they were; iterated, they are few.

    An encoder of transformers runs its blocks by ``for block in self.layer``. It gets one that
    stands for all neighbouring blocks a kernel can run, in their place; the others stay. The list
    itself cannot be changed, as the kernels would not notice.
    """

    def __init__(self, layers: nn.ModuleList, blocks: dict[int, Block], choice: Choice) -> None:
        super().__init__(layers)
        self.training = False
        self._steps = list(self._make_steps(blocks, choice))

    def _make_steps(self, blocks: dict[int, Block], choice: Choice) -> Iterator[nn.Module]:
        run: list[int] = []
        for index, layer in enumerate([*self._modules.values(), None]):
            fits = index in blocks and (not run or _shape(blocks[run[0]]) == _shape(blocks[index]))
            if run and not fits:
                layers = [self[number] for number in run]
                yield Run(layers, FusedBlocks([blocks[number] for number in run], choice))
                run = []
            if index in blocks:
                run.append(index)
            elif layer is not None:
                yield layer

    def __getitem__(self, index: int | slice) -> Any:
        """Return a block, or a plain list of blocks, as they were."""
        if isinstance(index, slice):
            return nn.ModuleList(list(self._modules.values())[index])
        return super().__getitem__(index)

    def _refuse_change(self, *_: Any) -> NoReturn:
        """Refuse to replace, add or remove a block, of which the kernels would know nothing."""
        raise RuntimeError(
            "the blocks of an accelerated model are fixed: change the model that it was made from,"
            " and accelerate that"
        )

    __setitem__ = __delitem__ = _refuse_change
    append = insert = pop = _refuse_change  # type: ignore[assignment]

    @property
    def fused_blocks(self) -> int:
        """Return the number of blocks that run inside of a kernel."""
        return sum(len(step.layers) for step in self._steps if isinstance(step, Run))

    def __iter__(self) -> Iterator[nn.Module]:
        """Return an iterator over what the encoder is to call, one after the other."""
        return iter(self._steps)


def _shape(block: Block) -> tuple[Any, ...]:
    sizes = [(layer.out_features, layer.in_features) for layer in block.linears]
    return (*sizes, block.heads, block.activation)


class Run(nn.Module):
    """Neighbouring blocks in one call, or one after the other where a call asks for more."""

    def __init__(self, layers: list[nn.Module], fused: FusedBlocks) -> None:
        super().__init__()
        self.layers = layers  # a plain list: they belong to the encoder
        self.fused = fused
        self.training = False

    @cached_property
    def hooks(self) -> list[dict[int, Any]]:
        """Return the registers of the hooks of all parts; an entry means that someone watches."""
        modules = [module for layer in self.layers for module in layer.modules()]
        return [
            register
            for module in modules
            for register in (module._forward_hooks, module._forward_pre_hooks)
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without references into other modules, for copies and pickles."""
        return {name: value for name, value in self.__dict__.items() if name != "hooks"}

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *arguments: Any,
        **options: Any,
    ) -> Tensor:
        """Return the states after the last of the blocks, as they would.

        Blocks are called one by one where someone watches them (`output_hidden_states`,
        `output_attentions`, hooks), and for masks that differ between queries.
        """
        simple, mask = key_mask(attention_mask)
        extra = [*arguments, *(options.get(name) for name in BY_NAME)]
        watched = any(map(is_watched, filter(None, self.hooks)))
        if simple and all(value is None for value in extra) and not watched:
            fused: Tensor = self.fused(hidden_states, mask)
            return fused
        for layer in self.layers:
            result = layer(hidden_states, attention_mask, *arguments, **options)
            hidden_states = result[0] if isinstance(result, tuple) else result
        return hidden_states
