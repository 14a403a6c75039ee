"""Count the sparsity of a saved model from its files: ``kd-prune sparsity <folder>``."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kd_prune.export import coding, packed_file
from kd_prune.pruning.report import SparsityReport, TensorCount
from kd_prune.results import recorded_scope, run_of

NUMBERED_LAYER = re.compile(r"\.\d+\.")
PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def count_saved(path: Path) -> SparsityReport:
    """Count the zeros of every tensor of a saved model without constructing the model.

    The scope is read from ``sparsity.csv`` of the model's run. For a model without a run, the scope
    is the matrices (and convolutions) of numbered layers, as papers count an encoder: linear
    weights, without embeddings, head, biases and norms.

    Args:
        path: A folder with weights (from kd_prune, transformers, Lightning or a plain state dict),
            a run folder of kd_prune, or a file.

    Raises:
        ValueError: The path does not exist, or cannot be read as plain tensors.
    """
    tensors, recorded = [], recorded_scope(run_of(path))
    found_in: dict[str, Path] = {}
    for file in weight_files(path):
        for name, shape, nonzero in tensor_counts(file):
            if (other := found_in.setdefault(name, file)) != file:
                raise ValueError(
                    f"{path}: {name} is in {other.name} and in {file.name}, which are two models; "
                    "name one of these files"
                )
            in_scope = name in recorded if recorded else is_matrix_of_layer(name, len(shape))
            size = math.prod(shape)
            tensors.append(
                TensorCount(
                    name=name,
                    shape="x".join(map(str, shape)),
                    in_scope=in_scope,
                    size=size,
                    zeros=size - nonzero,
                )
            )
    if not tensors:
        raise ValueError(f"{path}: contains no floating-point tensor")
    tensors.sort(key=lambda tensor: by_layer(tensor.name))
    scope = "in scope" if recorded else "matrices of layers"
    return SparsityReport(tuple(tensors), scope=scope)


def tensor_counts(file: Path) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield name, shape and number of non-zero values of each floating-point tensor in a file.

    Tensors of a packed file are counted without being unpacked.

    Raises:
        ValueError: The file is damaged, or contains more than plain tensors.
    """
    coded = set[str]()
    if file.suffix == ".safetensors" and packed_file.is_packed(file):
        for name, parts in packed_file.coded_tensors(file):
            try:
                shape, nonzero = coding.counts(parts)
            except coding.CodingError as error:
                raise ValueError(f"{file}: {name} {error}") from error
            coded.update(name + suffix for suffix in parts)
            yield name, shape, nonzero
    for name, tensor in read_tensors(file):
        if tensor.is_floating_point() and name not in coded:
            yield name, tuple(tensor.shape), count_nonzero_values(tensor, f"{file}: {name}")


def count_nonzero_values(tensor: Tensor, what: str) -> int:
    """Count the values that are not zero.

    Raises:
        ValueError: torch cannot (float8, a meta tensor), or zeros are not stored (sparse layouts).
    """
    if tensor.layout == torch.strided:
        with contextlib.suppress(NotImplementedError, RuntimeError):
            return int(tensor.count_nonzero())
    kind = f"{tensor.dtype} ({tensor.layout}, on {tensor.device})"
    raise ValueError(f"{what} is of {kind}, which is not counted")


def is_matrix_of_layer(name: str, dimensions: int) -> bool:
    """Return whether a tensor is a matrix (or a convolution) of a numbered layer.

    >>> is_matrix_of_layer("encoder.layer.0.query.weight", 2)
    True
    """
    return dimensions > 1 and NUMBERED_LAYER.search(f".{name}") is not None


def by_layer(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts layer 2 before layer 10.

    >>> sorted(["layer.10.weight", "layer.2.weight"], key=by_layer)
    ['layer.2.weight', 'layer.10.weight']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def weight_files(path: Path) -> list[Path]:
    """Return the weight files of the first pattern in `PATTERNS` that the folder matches.

    Raises:
        ValueError: The folder has no weight files.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise ValueError(f"{path}: no such folder or file")
    folder = path / "student" if (path / "student").is_dir() else path
    for pattern in PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise ValueError(f"{path}: contains no weight files ({', '.join(PATTERNS)})")


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of each tensor in a file, one at a time if the format allows it.

    A tensor with several names, such as tied embeddings, comes once, under the first.

    Raises:
        ValueError: The file is damaged, or contains more than plain tensors.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  not a mapping
                    yield name, tensors.get_tensor(name)
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise ValueError(f"{file}: damaged, or no weight file ({_first_line(error)})") from error
    except Exception as error:  # the restricted unpickler raises errors of any type
        raise ValueError(f"{file}: contains more than plain tensors, not loaded") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not isinstance(state, Mapping):
        raise ValueError(f"{file}: its state_dict holds no tensors by name")
    seen = set[tuple[object, ...]]()
    for key, value in state.items():
        name = str(key)
        if isinstance(value, Tensor) and value.layout != torch.strided:
            yield name, value
        elif isinstance(value, Tensor):
            place = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape)
            if place not in seen or not value.numel():
                yield name, value
            seen.add(place)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
