"""A finished student as a plain Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import whole


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    labels: tuple[str, ...] = (),
) -> None:
    """Write config, weights (safetensors) and tokenizer; the folder appears whole or not at all.

    Pruned weights are stored as zeros, so `from_pretrained` reads it where kd_prune is not
    installed. An earlier folder of that name is replaced.

    Args:
        model: What to save.
        tokenizer: Its tokenizer.
        folder: Where to.
        labels: Class names, for the config.

    Raises:
        OSError: The disk is full, or the folder cannot be written to; an earlier one stays.
    """
    one = model.config.num_labels == 1
    model.config.problem_type = "regression" if one else "single_label_classification"
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {name: i for i, name in enumerate(labels)}
    if backend := getattr(tokenizer, "backend_tokenizer", None):  # without what its last use left
        backend.no_truncation()
        backend.no_padding()
    with whole.folder(folder, replace=True) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for weights in scratch.glob("*.safetensors"):  # which are written for their owner alone
            shutil.copymode(scratch / "config.json", weights)
