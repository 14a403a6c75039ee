"""Tensors that are sharded between processes: gather, split and count them.

A sharded tensor is a `torch.distributed.tensor.DTensor`: each process holds a part, and its shape,
as all its operations on single entries, is that of the whole. Reductions are not: ``int()`` or
``bool()`` of a count or a sum gives the part's, so this module counts over all processes. Every
function of it is to be called in all processes in the same order, and takes plain tensors too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: object) -> TypeGuard[Any]:
    """Return whether a tensor is a DTensor.

    >>> is_sharded(torch.ones(2))
    False
    """
    # Not imported: it takes a second, and whoever has sharded a tensor has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def any_sharded(tensors: Iterable[object]) -> bool:
    """Return whether any of the tensors is a DTensor."""
    return any(map(is_sharded, tensors))


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Return the whole tensor in every process, as a plain tensor."""
    if not is_sharded(tensor):
        return tensor.detach()
    if tensor.dtype == torch.bool:  # not every backend sends it
        return gather(tensor.view(torch.uint8)).view(torch.bool)
    whole: Tensor = tensor.detach().full_tensor()
    return whole


@torch.no_grad()
def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part, sharing its memory; a plain tensor as it is."""
    if not is_sharded(tensor):
        return tensor.detach()
    part: Tensor = tensor.detach().to_local()
    return part


@torch.no_grad()
def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor that all processes hold as another one is; nothing is sent.

    Args:
        whole: The tensor, equal in all processes.
        like: A tensor of the same shape, sharded or not.
    """
    whole = whole.to(local_part(like).device)
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # `src_data_rank=None`: each process takes its part of its own copy.
    parts = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return parts.clone()  # else the parts keep the memory of the whole


@torch.no_grad()
def count_nonzero(tensors: Iterable[Tensor]) -> list[int]:
    """Count the nonzero entries of each tensor, of all parts together."""
    counts: list[Tensor] = []
    for tensor in tensors:
        count = local_part(tensor).count_nonzero()
        if is_sharded(tensor):
            for axis, placement in enumerate(tensor.placements):
                if not placement.is_replicate():
                    dist.all_reduce(count, group=tensor.device_mesh.get_group(axis))
        counts.append(count)
    return [int(count) for count in counts]
