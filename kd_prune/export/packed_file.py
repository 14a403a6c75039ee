"""Packed file: the weights of a model in one safetensors file, sparse matrices coded.

`pack` turns the tensors of a dense file into those of a packed one. `check_file` refuses a file
that is truncated, of another origin or inconsistent before anything of the size that it claims is
allocated; what it reads at once is never more than the file itself holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.export import coding

FILE = "packed.safetensors"
"""Name of the file. Plain transformers looks for ``model.safetensors`` and so refuses the folder;
under that name it would load it with new random matrices and a mere warning."""
VERSION = "1"
VERSION_KEY = "kd_prune_packed"
WEIGHT = "weight"
OVERHEAD = 300
"""Bytes that the entries of a coded tensor take in the header, about."""
VALUES = ("lossless", "fp16")
EMBEDDINGS = ("lossless", "fp16", "int8")


class PackedFileError(ValueError):
    """A file that is no packed model, or a damaged one."""


def pack(
    tensors: Mapping[str, Tensor],
    *,
    tables: Collection[str] = (),
    values: str = "lossless",
    embeddings: str = "lossless",
) -> dict[str, Tensor]:
    """Code the tensors of a model: every matrix that takes fewer bytes, and its embeddings.

    Args:
        tensors: Name → tensor of the dense model.
        tables: Names of embedding tables.
        values: One of `VALUES`: the type of everything but embeddings.
        embeddings: One of `EMBEDDINGS`: the type of the tables. `int8` has a factor per row.

    Raises:
        ConfigError: A value is too large for half precision.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        is_table = name in tables
        if is_table and embeddings == "int8":
            for suffix, part in coding.encode_rows(tensor).items():
                packed[name + suffix] = part
            continue
        kind = embeddings if is_table else values
        if kind == "fp16" and tensor.is_floating_point():
            tensor = half_precision(name, tensor, "embeddings" if is_table else "values")
        if name.endswith(f".{WEIGHT}") and tensor.ndim > 1 and tensor.is_floating_point():
            parts = coding.encode(tensor)
            if size_of(parts) + OVERHEAD < tensor.numel() * tensor.element_size():
                packed.update((name + suffix, part) for suffix, part in parts.items())
                continue
        packed[name] = tensor.contiguous()
    return packed


def half_precision(name: str, tensor: Tensor, key: str) -> Tensor:
    """Round a tensor to float16.

    Raises:
        ConfigError: A finite value has no finite neighbour in half precision (above 65 504).
    """
    half = tensor.to(torch.float16)
    if bool((half.isinf() & tensor.isfinite()).any()):
        raise ConfigError(key, "fp16", f"{name} has a value beyond half precision (65504)")
    return half


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def metadata() -> dict[str, str]:
    """Return the metadata of a packed file."""
    return {"format": "pt", VERSION_KEY: VERSION}


def check_file(path: Path, shapes: Mapping[str, torch.Size] | None = None) -> None:
    """Check a packed file completely, one tensor at a time.

    Args:
        path: The file.
        shapes: Name → shape of the model's parameters. A coded tensor of such a name has to have
            that shape, so that what is allocated is the model's and not what the file says.

    Raises:
        PackedFileError: The file is no packed model, is damaged or contradicts the model.
    """
    for name, parts in coded_tensors(path):
        try:
            shape, _ = coding.counts(parts)
        except coding.CodingError as error:
            raise PackedFileError(f"{path}: {name} {error}") from error
        expected = (shapes or {}).get(name)
        if expected is not None and shape != tuple(expected):
            raise PackedFileError(
                f"{path}: {name} has the shape {list(shape)}, the model {list(expected)}"
            )


def coded_tensors(path: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield name and parts of every coded tensor of a packed file, one at a time.

    Raises:
        PackedFileError: The file is no packed file, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get(VERSION_KEY)
            if found is None:
                raise PackedFileError(f"{path}: no file that kd_prune packed")
            if found != VERSION:
                raise PackedFileError(
                    f"{path}: packed by another version of kd_prune (format {found[:16]!r}, this "
                    f"version reads {VERSION})"
                )
            for name, keys in groups(file.keys()).items():
                yield name, {suffix: file.get_tensor(key) for suffix, key in keys.items()}
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise PackedFileError(f"{path}: damaged, or no safetensors file ({reason})") from error


def groups(keys: Collection[str]) -> dict[str, dict[str, str]]:
    """Return name of a coded tensor → suffix → key, for the keys of a file.

    >>> groups(["a.weight_values", "a.weight_shape", "b.weight"])
    {'a.weight': {'_values': 'a.weight_values', '_shape': 'a.weight_shape'}}
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key in keys:
        for suffix in coding.SUFFIXES:
            if key.endswith(f"{WEIGHT}{suffix}"):
                found[key.removesuffix(suffix)][suffix] = key
    return dict(found)


def is_packed(path: Path) -> bool:
    """Return whether a file says that it is packed; False for one that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return VERSION_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
