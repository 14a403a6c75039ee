"""Study: where a search keeps its trials, and the rule that stops one of them."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from kd_prune.errors import ConfigError

STUDY = "search"


class MedianStoppingRule:
    """Median stopping: end a trial whose metric is worse than the median of earlier trials.

    Sparsity rises during a run and the metric falls with it. Values are therefore reported to the
    study only at the final sparsity, under the run's progress in percent: trials are compared at
    the same sparsity and progress, whatever their steps and ramp. No trial is stopped by fewer than
    three others, nor at the end of its training.

    Args:
        storage: Storage of the study.
        trial: Number of the trial.
        final: Sparsity from which on values count.
        startup: Number of first trials of which none is stopped.
    """

    def __init__(self, storage: str, trial: int, final: float, startup: int) -> None:
        optuna = import_optuna()
        self.final = final
        self.study = optuna.load_study(
            study_name=STUDY,
            storage=open_storage(storage),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=startup, n_min_trials=3),
        )
        (found,) = (t for t in self.study.get_trials() if t.number == trial)
        self.trial = optuna.trial.Trial(self.study, found._trial_id)
        self.reported = set(found.intermediate_values)

    def __call__(self, percent: int, sparsity: float, value: float) -> str | None:
        """Report a value; return the reason to stop the trial, or None."""
        if sparsity < self.final - 1e-3 or percent in self.reported:  # reported before resuming
            return None
        self.reported.add(percent)
        self.trial.report(value, percent)
        if percent == 100 or not self.trial.should_prune():
            return None
        return (
            f"{value:.4f} after {percent} % of the run is worse than the median of earlier trials"
        )


def open_storage(storage: str) -> Any:
    """Open a database by its URL, or a journal file, which is only appended to."""
    if "://" in storage:
        return storage
    journal = import_module("optuna.storages.journal")
    backend = journal.JournalFileBackend(storage, lock_obj=journal.JournalFileOpenLock(storage))
    return import_optuna().storages.JournalStorage(backend)


@cache
def import_optuna() -> Any:
    """Import Optuna, which only a search needs.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        optuna = import_module("optuna")
    except ImportError as error:
        raise ConfigError(
            "hparams_search",
            "optuna",
            "Optuna is not installed",
            "pip install '<clone>[optuna]'",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
