"""Export of a finished model as a plain Hugging Face folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import atomic_io
from kd_prune.hf.kinds.base import TaskKind


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    kind: TaskKind,
    labels: Sequence[str] = (),
) -> None:
    """Save config, weights (safetensors) and tokenizer to a folder, which is written atomically.

    Pruned weights are stored as zeros, so `from_pretrained` reads the folder where kd_prune is not
    installed. An earlier folder of that name is replaced.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: Folder to write.
        kind: Kind of the task, which gives the config's description of the model.
        labels: Class names, for the config.

    Raises:
        OSError: The disk is full, or the folder cannot be written to; an earlier one stays.
    """
    for key, value in kind.model_config(labels).items():
        setattr(model.config, key, value)
    if backend := getattr(tokenizer, "backend_tokenizer", None):  # remove settings of its last call
        backend.no_truncation()
        backend.no_padding()
    with atomic_io.folder(folder, replace=True) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for weights in scratch.glob("*.safetensors"):  # safetensors lets only the owner read
            shutil.copymode(scratch / "config.json", weights)
