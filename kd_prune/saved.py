"""Sparsity of a saved model, counted from its files: ``python -m kd_prune <folder>``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kd_prune.pruning.report import SparsityReport, TensorCount

IN_A_LAYER = re.compile(r"\.\d+\.")
PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def count_saved(path: Path) -> SparsityReport:
    """Zeros of every tensor of a saved model, whoever saved it; no model is built.

    In scope are the matrices (and convolutions) of numbered layers, which is what papers count of
    an encoder: its Linear weights, neither embeddings nor head, biases or norms.

    Args:
        path: A folder with weights (of kd_prune, transformers, Lightning or a plain state dict),
            one of our run folders, or a file.

    Raises:
        ValueError: There is no such thing, or it cannot be read as plain tensors.
    """
    tensors = []
    for file in weight_files(path):
        for name, tensor in read_tensors(file):
            if not tensor.is_floating_point():
                continue
            tensors.append(
                TensorCount(
                    name=name,
                    shape="x".join(map(str, tensor.shape)),
                    in_scope=tensor.ndim > 1 and IN_A_LAYER.search(f".{name}") is not None,
                    size=tensor.numel(),
                    zeros=tensor.numel() - int(tensor.count_nonzero()),
                )
            )
    if not tensors:
        raise ValueError(f"{path}: there is no tensor in it")
    return SparsityReport(tuple(sorted(tensors, key=lambda tensor: by_layer(tensor.name))))


def by_layer(name: str) -> list[tuple[int, str]]:
    """Sort key that has layer 2 before layer 10.

    >>> sorted(["layer.10.weight", "layer.2.weight"], key=by_layer)
    ['layer.2.weight', 'layer.10.weight']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights: of the first kind in `PATTERNS` that the folder has.

    Raises:
        ValueError: There are none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise ValueError(f"{path}: no such folder or file")
    folder = path / "student" if (path / "student").is_dir() else path
    for pattern in PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise ValueError(f"{path}: no weights in there ({', '.join(PATTERNS)})")


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each tensor in a file, one at a time where the format allows it.

    Raises:
        ValueError: It is damaged, or holds more than plain tensors.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  a handle, no mapping
                    yield name, tensors.get_tensor(name)
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise ValueError(f"{file}: damaged, or no weights ({_first_line(error)})") from error
    except Exception as error:  # torch raises what its restricted unpickler met
        raise ValueError(f"{file}: more than plain tensors, not loaded") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    yield from ((name, value) for name, value in state.items() if isinstance(value, Tensor))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
