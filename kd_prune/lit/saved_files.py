"""Saved files: which of the checkpoints that a fit leaves were saved on its ramp."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

ROUNDING = 0.01
"""Share of zeros that a file of weights alone may lack: counts per tensor are rounded."""


def warn_of_files_on_the_ramp(
    trainer: L.Trainer, key: str, names: Collection[str], final: float, label: str
) -> None:
    """Warn of checkpoints that the fit leaves as its best or last and that are less sparse.

    Args:
        trainer: The trainer, after the fit.
        key: Key of the callback in checkpoints.
        names: Names of the pruned weights in the module's state dict.
        final: Sparsity at the end of the ramp.
        label: The callback as messages call it.
    """
    kept = dict(_kept_files(trainer))
    short = {}
    for path in kept:
        saved = _read_checkpoint(path)
        at, needed = _sparsity_of_masks(saved, key), final
        if at is None:
            at, needed = _share_of_zeros(saved, names), final - ROUNDING
        if at is not None and at < needed:
            short[path] = at
    if short:
        files = ", ".join(f"{path} ({kept[path]}) at {at:.4g}" for path, at in short.items())
        advice = ""
        if kept.keys() == short.keys():
            advice += (
                "; ModelCheckpoint(save_on_train_epoch_end=True), without monitor, keeps the model "
                "of the end"
            )
        if trainer.early_stopping_callbacks:
            advice += "; EarlyStopping has to wait for the ramp (docs/plugin.md, Checkpoints)"
        warnings.warn(
            f"saved on the ramp of {label}, below sparsity {final:g}: {files}{advice}",
            stacklevel=3,
        )


def _kept_files(trainer: L.Trainer) -> Iterator[tuple[Path, str]]:
    """Yield the files that users take a model from, each once."""
    seen = set[str]()
    for callback in trainer.checkpoint_callbacks:
        monitor = getattr(callback, "monitor", None)
        roles = {"last_model_path": "the last", "best_model_path": f"the best by {monitor}"}
        for attribute, role in roles.items():
            path = getattr(callback, attribute, "")
            if path and path not in seen and Path(path).is_file():
                seen.add(path)
                yield Path(path), role if monitor else "the last"


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Return the content of a checkpoint; empty if it cannot be read as plain data."""
    try:
        # Mapped, so that no weight is read that is not needed.
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        return {}  # with hyperparameters that are no plain data, or of another format
    return saved if isinstance(saved, Mapping) else {}


def _sparsity_of_masks(saved: Mapping[str, Any], key: str) -> float | None:
    """Return the sparsity that a checkpoint's masks were made for; None without masks."""
    target: float | None = saved.get("callbacks", {}).get(key, {}).get("pruner", {}).get("target")
    return target


def _share_of_zeros(saved: Mapping[str, Any], names: Collection[str]) -> float | None:
    """Count the share of zeros in a file of weights alone; None of a full checkpoint."""
    if "callbacks" in saved:
        return None
    weights = [weight for name, weight in saved.get("state_dict", {}).items() if name in names]
    if not weights:
        return None
    left = sum(int(torch.count_nonzero(weight)) for weight in weights)
    return float(1.0 - left / sum(weight.numel() for weight in weights))
