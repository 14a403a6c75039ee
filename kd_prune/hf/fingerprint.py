"""Fingerprints of a model and of a tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Config entries that name labels, or record which code wrote the config and where the model is.
CONFIG_KEYS_IGNORED = {
    "_name_or_path",
    "architectures",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "transformers_version",
}


def pretrained_weights(model: PreTrainedModel) -> re.Pattern[str]:
    """Return a pattern of the weights that files must contain; head and pooler may be new."""
    prefix = model.base_model_prefix
    return re.compile(rf"{prefix}\.(?!pooler\.)" if hasattr(model, prefix) else r"(?!pooler\.)")


def model_fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, head: bool = True
) -> str:
    """Hash a model to be fine-tuned: weights, config and tokenizer.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        head: Whether to include weights that may be new; those differ between kinds of CPU, even
            from the same seed.
    """
    digest = hashlib.sha256()
    pretrained = pretrained_weights(model)
    for name, tensor in model.state_dict().items():
        if not head and not pretrained.match(name):
            continue
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    config = model.config.to_dict()
    relevant = {key: value for key, value in config.items() if key not in CONFIG_KEYS_IGNORED}
    digest.update(json.dumps(relevant, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Return a tokenizer's state without the truncation and padding set by its last call."""
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        state = json.loads(backend.to_str())
        for set_by_use in ("truncation", "padding"):
            state.pop(set_by_use, None)
        return json.dumps(state, sort_keys=True).encode()
    with tempfile.TemporaryDirectory() as folder:  # a tokenizer in Python has its state in files
        files = [Path(file) for file in sorted(tokenizer.save_pretrained(folder))]
        settings = Path(folder) / "tokenizer_config.json"
        kept = json.loads(settings.read_text())
        for set_by_loading in ("is_local", "local_files_only", "name_or_path"):
            kept.pop(set_by_loading, None)
        settings.write_text(json.dumps(kept, sort_keys=True))
        return b"".join(file.read_bytes() for file in files if file.is_file())
