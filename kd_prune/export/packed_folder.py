"""Packed folder: config and packed file, for `from_pretrained` after `import kd_prune`."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from kd_prune.export import packed_file
from kd_prune.export.quantizer import ARCHITECTURE, METHOD


def save_packed(
    model: PreTrainedModel, folder: Path, *, values: str = "lossless", embeddings: str = "lossless"
) -> None:
    """Write config and packed weights of a model to an existing folder.

    Args:
        model: The model; it does not change.
        folder: The folder.
        values: One of `packed_file.VALUES`.
        embeddings: One of `packed_file.EMBEDDINGS`.

    Raises:
        ConfigError: A value is too large for half precision.
        OSError: The disk is full, or the folder cannot be written to.
    """
    model.save_pretrained(folder, max_shard_size="1000GB")
    dense = folder / "model.safetensors"
    packed = packed_file.pack(
        load_file(dense), tables=embedding_tables(model), values=values, embeddings=embeddings
    )
    save_file(packed, folder / packed_file.FILE, metadata=packed_file.metadata())
    dense.unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = [ARCHITECTURE + name for name in config["architectures"]]
    config["quantization_config"] = {
        "quant_method": METHOD,
        "dequantize": True,
        "version": packed_file.VERSION,
        "values": values,
        "embeddings": embeddings,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def embedding_tables(model: PreTrainedModel) -> set[str]:
    """Return the names of the weights of embeddings: tokens, positions, segments."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
