"""Half precision: the dense folder in float16, which loads everywhere and compresses best."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from kd_prune.export.packed_file import half_precision


def save_fp16(model: PreTrainedModel, folder: Path) -> None:
    """Write config and weights of a model in half precision to an existing folder.

    Args:
        model: The model; it becomes one of half precision.
        folder: The folder.

    Raises:
        ConfigError: A value is too large for half precision.
        OSError: The disk is full, or the folder cannot be written to.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            half_precision(name, tensor, "format")  # refuses what would become infinite
    nn.Module.half(model)
    model.save_pretrained(folder)
