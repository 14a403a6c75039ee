"""Warnings where a run does not follow its ramp: it began too late or ended too early."""

from __future__ import annotations

import math
import warnings

import lightning.pytorch as L

from kd_prune.lit.progress import RunLength
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.update_schedule import UpdateSchedule


def warn_if_ramp_has_begun(
    updates: UpdateSchedule, step: int, length: RunLength, *, label: str
) -> None:
    """Warn where a run without saved masks starts behind the first updates of its ramp.

    Args:
        updates: Update step → sparsity.
        step: Step at which the run starts.
        length: Length of the run.
        label: The callback as messages call it.
    """
    if any(update < step for update in updates):
        reached = [sparsity for update, sparsity in updates.items() if update <= step][-1]
        warnings.warn(
            f"the run continues at {step} of {length.total} {length.unit} without a state of "
            f"{label}, so its next step prunes to {reached:.4g} at once; "
            f"begin={math.ceil(100 * step / length.total) / 100:g} lets the ramp begin here",
            stacklevel=3,
        )


def warn_if_ramp_was_cut(
    pruner: Pruner,
    step: int,
    length: RunLength,
    *,
    stepped: bool | None,
    stopped: bool,
    label: str,
) -> None:
    """Warn where a run ended before the last update of its ramp, or made no optimizer step.

    Args:
        pruner: Holds the masks.
        step: Step at which the run ended.
        length: Length of the run.
        stepped: Whether any optimizer made a step; None: there was no batch.
        stopped: Whether the run was asked to stop; its masks then stay as they are.
        label: The callback as messages call it.
    """
    updates = pruner.update_schedule
    if stepped is False and step >= min(updates, default=math.inf):
        warnings.warn(
            "no optimizer's step() was called, so the ramp was not followed and all is pruned at "
            "once now; step through self.optimizers()",
            stacklevel=3,
        )
    elif step < max(updates, default=0):
        reason, consequence = "shorter than planned", ", and is pruned to the end at once"
        if stopped:
            reason, consequence = "stopped", ""
        warnings.warn(
            f"the fit was {reason}: it ended at {step} of {length.total} {length.unit}, on the "
            f"ramp of {label}, at sparsity {pruner.target:.4g}{consequence}",
            stacklevel=3,
        )


def warn_if_length_is_unknown(trainer: L.Trainer, length: RunLength) -> None:
    """Warn before a fit whose loader has no length and may end before ``max_steps`` are made."""
    epochs = trainer.max_epochs or 0
    if length.steps and epochs > 0 and math.isinf(trainer.num_training_batches):
        then = "the rest of the ramp is fitted to the run after the first epoch"
        if epochs == 1:
            then = "all that is left of the ramp is pruned at once at its last batch"
        warnings.warn(
            f"the training loader has no length, so the ramp is planned for the {length.total} "
            f"{length.unit} of max_steps; if max_epochs={epochs} ends the run before, {then}; take "
            "max_epochs=-1, or a max_steps that the run reaches",
            stacklevel=3,
        )
