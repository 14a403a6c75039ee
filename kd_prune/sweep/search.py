"""Search: Hydra's sweeper on Optuna, ``python train.py -m hparams_search=optuna``.

Hydra's own plugin for Optuna asks for a release before 3.0, and neither prunes trials nor goes on
where it was cut off.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from kd_prune.sweep import status
from kd_prune.sweep.names import PLACES

log = logging.getLogger(__name__)
STUDY = "search"
BEST = "best.yaml"
FIXED = ("task", "seed", "sparsity.final")
"""What a search leaves as it is: values under other tasks, seeds or targets do not compare."""


class OptunaSweeper(Sweeper):
    """Looks for the settings with the best metric at the target sparsity.

    A trial is a job like any other: named by what it is, skipped where it is finished, resumed
    where it was interrupted. The study lies in the sweep's folder, so the same command goes on with
    it; trials that a kill left running come first. With more `n_trials` it goes on further, and
    with ``sweep.retry_failed`` what failed is tried again.

    Args:
        params: Key → what is tried, in Hydra's words: ``interval(a, b)``, ``tag(log, interval(a,
            b))``, ``choice(a, b)``, ``range(a, b)``. The same on the command line goes before it.
        n_trials: Trials of the whole study, pruned and failed ones included.
        n_jobs: Trials that the launcher gets at once.
        direction: `maximize` or `minimize`, of the value that the job returns.
        seed: Of the sampler, Optuna's TPE.
        startup: Trials before which the sampler draws at random and nothing is pruned.
        storage: URL of a database (SQLAlchemy's); null: a file in the sweep's folder.
    """

    def __init__(
        self,
        params: Mapping[str, str],
        n_trials: int,
        n_jobs: int,
        direction: str,
        seed: int,
        startup: int,
        storage: str | None,
    ) -> None:
        if n_trials < 1 or n_jobs < 1:
            raise ValueError(
                f"hydra.sweeper.n_trials={n_trials}, n_jobs={n_jobs}: expected numbers above 0"
            )
        self.params = params
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.direction = direction
        self.seed = seed
        self.startup = startup
        self.storage = storage
        self.launcher: Launcher
        self.context: HydraContext
        self.config: DictConfig

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's: keep what is needed to launch jobs."""
        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Hydra's: ask for trials, launch them, tell how they went, until there are enough.

        Raises:
            HydraException: Optuna is not installed, nothing is to be searched, or what has to stay
                the same; or a trial did not come to an end: another process has it.
        """
        import_optuna()
        written = [f"{key}={value}" for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        overrides = {o.get_key_element(): o for o in parser.parse_overrides(written + arguments)}
        space = {k: distribution(o) for k, o in overrides.items() if o.is_sweep_override()}
        rest = {k: o.get_value_element_as_str() for k, o in overrides.items() if k not in space}
        if not space:
            raise HydraException(
                "hydra.sweeper.params: nothing to search; see hparams_search=optuna"
            )
        for key in FIXED:
            if key in {given.lstrip("+") for given in space}:
                (line,) = (o.input_line for k, o in overrides.items() if k.lstrip("+") == key)
                raise HydraException(
                    f"{line}: a search is for one {key}; "
                    "give one value here, and each of them a search"
                )
        folder = Path(self.config.hydra.sweep.dir).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            self._search(folder, space, rest)

    def _search(self, folder: Path, space: Mapping[str, Any], rest: Mapping[str, str]) -> None:
        optuna = import_optuna()
        OmegaConf.save(self.config, folder / "multirun.yaml")
        storage = self.storage or str(folder / "study.log")
        study = optuna.create_study(
            study_name=STUDY,
            storage=open_storage(storage),
            direction=self.direction,
            load_if_exists=True,
        )
        check_same(study, self.direction, space, rest)
        drawn = len(study.get_trials(deepcopy=False))  # else it would draw the same ones again
        study.sampler = optuna.samplers.TPESampler(
            seed=self.seed + drawn, n_startup_trials=self.startup
        )
        if self.config.sweep.retry_failed:
            self._retry(study)
        launched = 0
        while trials := self._next(study, space):
            # Trials with the same settings are one job.
            jobs: dict[tuple[str, ...], Any] = {}
            for trial in trials:
                jobs.setdefault(tuple(f"{k}={v}" for k, v in trial.params.items()), trial)
            batch = [
                [
                    *(f"{key}={value}" for key, value in rest.items()),
                    *settings,
                    f"search.storage='{storage}'",
                    f"search.trial={trial.number}",
                    f"search.startup={self.startup}",
                ]
                for settings, trial in jobs.items()
            ]
            returns = self.launcher.launch(batch, initial_job_idx=launched)
            launched += len(batch)
            for first, job in zip(jobs.values(), returns, strict=True):
                for trial in trials:
                    if trial.params == first.params:
                        self._tell(study, trial.number, job)
        self._report(study, folder)

    def _retry(self, study: Any) -> None:
        """Put what failed, and is not being tried again yet, in the queue."""
        trials = study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get("retries") for trial in trials}
        failed = import_optuna().trial.TrialState.FAIL
        for trial in trials:
            if trial.state == failed and trial.params and trial.number not in again:
                study.enqueue_trial(trial.params, user_attrs={"retries": trial.number})

    def _next(self, study: Any, space: Mapping[str, Any]) -> Sequence[Any]:
        """Trials that a kill left running, then new ones; none where there are enough."""
        states = import_optuna().trial.TrialState
        left = []
        for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if space.keys() <= trial.params.keys():
                left.append(trial)
            else:  # killed while it was being drawn
                study.tell(trial.number, state=states.FAIL)
        trials = study.get_trials(deepcopy=False)
        drawn = sum(trial.state != states.WAITING for trial in trials)
        allowed = self.n_trials + sum("retries" in trial.user_attrs for trial in trials)
        new = min(self.n_jobs, max(allowed - drawn, 0))
        return left[: self.n_jobs] or [study.ask(space) for _ in range(new)]

    def _tell(self, study: Any, number: int, job: JobReturn) -> None:
        value = job.return_value  # raises what the launcher caught
        assert job.hydra_cfg is not None  # noqa: S101  it has run
        state = status.read(Path(job.hydra_cfg.hydra.runtime.output_dir)).get("state")
        states = import_optuna().trial.TrialState
        if state == "finished":
            study.tell(number, value)
        elif state == "pruned":
            study.tell(number, state=states.PRUNED)
        elif state == "failed":
            study.tell(number, state=states.FAIL)
        else:
            raise HydraException(f"trial {number} is {state}; the same command goes on with it")
        log.info("trial %s: %s%s", number, state, f", {value:.4f}" if state == "finished" else "")

    def _report(self, study: Any, folder: Path) -> None:
        states = import_optuna().trial.TrialState
        complete = [t for t in study.get_trials(deepcopy=False) if t.state == states.COMPLETE]
        counts = {
            s.name.lower(): n
            for s in states
            if (n := sum(t.state == s for t in study.get_trials(deepcopy=False)))
        }
        log.info("%s", ", ".join(f"{n} {state}" for state, n in counts.items()))
        if not complete:
            log.error("no trial was finished")
            return
        best = study.best_trial
        result = {"value": best.value, "trial": best.number, "params": dict(best.params)}
        OmegaConf.save(OmegaConf.create(result | {"trials": counts}), folder / BEST)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the search in this folder: its trials left running are then those of dead processes.

    Raises:
        HydraException: Another process holds it.
    """
    lock = FileLock(folder / "search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise HydraException(
            f"{folder}: another process is searching here; for several trials at once give one "
            "command a launcher and hydra.sweeper.n_jobs"
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_same(
    study: Any, direction: str, space: Mapping[str, Any], rest: Mapping[str, str]
) -> None:
    """Raise HydraException if the study is of another search, whose values do not compare."""
    of = {
        "hydra.sweeper.direction": direction,
        **{key: repr(values) for key, values in space.items()},
        **{k: v for k, v in rest.items() if k.lstrip("+").split(".")[0] not in PLACES},
    }
    known = study.user_attrs.get("of")
    if known is None:
        study.set_user_attr("of", of)
        return
    for key in (*of, *known):
        if of.get(key) != known.get(key):
            raise HydraException(
                f"{key}={of.get(key)}: the search in this folder is one with {known.get(key)}; "
                "give another sweep.name"
            )


def print_best(folder: Path) -> None:
    """The best settings that a search in this folder has found, to be pasted."""
    if not (folder / BEST).is_file():
        return
    best = OmegaConf.load(folder / BEST)
    print(f"Best: {best.value:.4f}, trial {best.trial} ({folder / BEST})")
    print(" ".join(f"{key}={value}" for key, value in best.params.items()), flush=True)


def distribution(override: Override) -> Any:
    """Optuna's distribution for what Hydra would sweep over."""
    distributions = import_optuna().distributions
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    low, high, logarithmic = value.start, value.end, "log" in value.tags
    if isinstance(low, int) and isinstance(high, int):
        return distributions.IntDistribution(low, high, log=logarithmic)
    return distributions.FloatDistribution(float(low or 0), float(high or 0), log=logarithmic)


class TrialJudge:
    """Ends a trial that falls behind the median of the others.

    Sparsity rises during a run and the metric falls with it, so values are shown to the study only
    once the run has its final sparsity, under the share of the run that is done, in percent:
    whatever a trial's steps and ramp, it is compared with others at the same sparsity and progress.
    Nothing is ended by fewer than three others, nor at the end of its training.

    Args:
        storage: The study's.
        trial: The trial's number.
        final: The sparsity from which values count.
        startup: Trials before which nothing is pruned.
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
        self.seen = set(found.intermediate_values)

    def __call__(self, percent: int, sparsity: float, value: float) -> str | None:
        """Report a value; the reason to give up, or None."""
        if sparsity < self.final - 1e-3 or percent in self.seen:  # seen: before it was resumed
            return None
        self.seen.add(percent)
        self.trial.report(value, percent)
        if percent == 100 or not self.trial.should_prune():
            return None
        return f"{value:.4f} after {percent} % of the run is below the median of earlier trials"


def open_storage(storage: str) -> Any:
    """A database by its URL, or a journal: a file that is only ever appended to."""
    if "://" in storage:
        return storage
    journal = import_module("optuna.storages.journal")
    backend = journal.JournalFileBackend(storage, lock_obj=journal.JournalFileOpenLock(storage))
    return import_optuna().storages.JournalStorage(backend)


@cache
def import_optuna() -> Any:
    """Optuna, which only a search needs.

    Raises:
        HydraException: It is not installed.
    """
    try:
        optuna = import_module("optuna")
    except ImportError as error:
        raise HydraException(
            "hparams_search=optuna: Optuna is not installed; pip install '<clone>[optuna]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
