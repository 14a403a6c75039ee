"""Search: Hydra's sweeper on Optuna, ``python train.py -m hparams_search=optuna``.

Hydra's own plugin, hydra-optuna-sweeper 1.3.0, requires optuna < 3.0, stops no trials and resumes
no study; its next version requires Hydra 1.4. Once it is released with a current Optuna, this
module may be replaced by that plugin and `MedianStoppingRule`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from kd_prune.config_utils import quote_value
from kd_prune.errors import UNSET, ConfigError
from kd_prune.results import is_loss
from kd_prune.sweep import status
from kd_prune.sweep.run_id import IGNORED_KEYS
from kd_prune.sweep.study import STUDY, import_optuna, open_storage

log = logging.getLogger(__name__)
BEST_FILE = "best.yaml"
FIXED = "settings of all trials"
"""Attribute of a study."""
RETRY_OF = "retry_of"
"""Attribute of a trial with the settings of a failed one: the failed one's number."""
FIXED_KEYS = ("task", "seed", "sparsity.final")
"""Keys that a search may not vary: metrics of other tasks, seeds or targets do not compare."""


class OptunaSweeper(Sweeper):
    """Search for the settings with the best metric at the target sparsity.

    A trial is a job like any other: named by its configuration, skipped if it is finished, resumed
    if it was interrupted. The study is stored in the sweep's folder, so the same command continues
    it; trials that a killed process left running come first, and a larger `n_trials` adds trials.

    Args:
        params: Key → values to try, in Hydra's syntax: ``interval(a, b)``, ``tag(log, interval(a,
            b))``, ``choice(a, b)``, ``range(a, b)``. The command line takes precedence.
        n_trials: Number of trials of the study, stopped and failed ones included.
        n_jobs: Number of trials that the launcher gets at once.
        direction: `maximize` or `minimize`, of the value that the job returns.
        seed: Seed of the sampler, Optuna's TPE.
        startup: Number of first trials that are sampled at random and of which none is stopped.
        storage: URL of a database (SQLAlchemy's); null: a file in the sweep's folder.

    Raises:
        ConfigError: `n_trials` or `n_jobs` is below 1.
    """

    def __init__(
        self,
        params: Mapping[str, str],
        n_trials: int,
        n_jobs: int,
        direction: str | None,
        seed: int,
        startup: int,
        storage: str | None,
    ) -> None:
        for name, value in (("n_trials", n_trials), ("n_jobs", n_jobs)):
            if value < 1:
                raise ConfigError(f"hydra.sweeper.{name}", value, "expected a number above 0")
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
        """Make the launcher of the trials; called by Hydra."""
        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Ask for trials, launch them and report their values, until there are enough.

        Raises:
            ConfigError: Optuna is not installed, there is nothing to search, or a key may not vary.
            HydraException: Another process searches in this folder, or runs one of the trials.
        """
        import_optuna()
        written = [f"{key}={value}" for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        overrides = {o.get_key_element(): o for o in parser.parse_overrides(written + arguments)}
        space = {k: distribution(o) for k, o in overrides.items() if o.is_sweep_override()}
        fixed = {k: o.get_value_element_as_str() for k, o in overrides.items() if k not in space}
        if not space:
            raise ConfigError(
                "hydra.sweeper.params", UNSET, "nothing to search", "see hparams_search=optuna"
            )
        for given in space:
            key = given.lstrip("+")
            if key in FIXED_KEYS:
                _, _, value = str(overrides[given].input_line).partition("=")
                raise ConfigError(
                    given,
                    value,
                    f"a search is for one {key}",
                    "give one value here, and run one search for each of them",
                )
        if self.direction is None:
            job = self.context.config_loader.load_sweep_config(
                self.config, [f"{key}={value}" for key, value in fixed.items()]
            )
            lower = is_loss(OmegaConf.select(job, "task.monitor") or "")
            self.direction = "minimize" if lower else "maximize"
        folder = Path(self.config.hydra.sweep.dir).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with study_lock(folder):
            self._run_trials(folder, space, fixed)

    def _run_trials(self, folder: Path, space: Mapping[str, Any], fixed: Mapping[str, str]) -> None:
        optuna = import_optuna()
        OmegaConf.save(self.config, folder / "multirun.yaml")
        storage = self.storage or str(folder / "study.log")
        study = optuna.create_study(
            study_name=STUDY,
            storage=open_storage(storage),
            direction=self.direction,
            load_if_exists=True,
        )
        check_same_settings(study, fixed, folder)
        # A continued study needs another seed, or it would sample the same trials again.
        sampled = len(study.get_trials(deepcopy=False))
        study.sampler = optuna.samplers.TPESampler(
            seed=self.seed + sampled, n_startup_trials=self.startup
        )
        if self.config.sweep.retry_failed:
            retry_failed_trials(study, space)
        launched = 0
        while trials := self._next_trials(study, space):
            # Trials with the same settings are one job.
            jobs: dict[tuple[str, ...], Any] = {}
            for trial in trials:
                jobs.setdefault(tuple(f"{k}={v}" for k, v in trial.params.items()), trial)
            batch = [
                [
                    *(f"{key}={value}" for key, value in fixed.items()),
                    *settings,
                    f"search.storage={quote_value(storage)}",
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
                        self._report_trial(study, trial.number, job)
        self._save_best(study, folder)

    def _next_trials(self, study: Any, space: Mapping[str, Any]) -> Sequence[Any]:
        """Return the trials that a killed process left running, else new ones up to `n_trials`.

        New ones begin with those that wait to be tried again; they do not count twice.
        """
        states = import_optuna().trial.TrialState
        left = []
        for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if space.keys() <= trial.params.keys():
                left.append(trial)
            else:  # killed while its settings were sampled
                study.tell(trial.number, state=states.FAIL)
        trials = study.get_trials(deepcopy=False)
        waiting = sum(trial.state == states.WAITING for trial in trials)
        retries = sum(RETRY_OF in trial.user_attrs for trial in trials)
        wanted = max(self.n_trials - (len(trials) - retries), 0) + waiting
        new = min(self.n_jobs, wanted)
        return left[: self.n_jobs] or [study.ask(space) for _ in range(new)]

    def _report_trial(self, study: Any, number: int, job: JobReturn) -> None:
        value = job.return_value  # raises the exception that the launcher caught
        assert job.hydra_cfg is not None  # noqa: S101  the job has run
        found = status.read(Path(job.hydra_cfg.hydra.runtime.output_dir))
        state = found.state if found else None
        states = import_optuna().trial.TrialState
        if state == "finished":
            study.tell(number, value)
        elif state == "stopped":
            study.tell(number, state=states.PRUNED)
        elif state == "failed":
            study.tell(number, state=states.FAIL)
        else:
            raise HydraException(
                f"trial {number} is {state}; run the same command again to resume it"
            )
        log.info("trial %s: %s%s", number, state, f", {value:.4f}" if state == "finished" else "")

    def _save_best(self, study: Any, folder: Path) -> None:
        states = import_optuna().trial.TrialState
        complete = [t for t in study.get_trials(deepcopy=False) if t.state == states.COMPLETE]
        counts = {
            "stopped" if s == states.PRUNED else s.name.lower(): n
            for s in states
            if (n := sum(t.state == s for t in study.get_trials(deepcopy=False)))
        }
        log.info("%s", ", ".join(f"{n} {state}" for state, n in counts.items()))
        if not complete:
            log.error("no trial was finished")
            return
        best = study.best_trial
        result = {"value": best.value, "trial": best.number, "params": dict(best.params)}
        OmegaConf.save(OmegaConf.create(result | {"trials": counts}), folder / BEST_FILE)


def check_same_settings(study: Any, fixed: Mapping[str, str], folder: Path) -> None:
    """Refuse to continue a study whose trials had other fixed settings; record those of a new one.

    Raises:
        ConfigError: The study has values of other settings.
    """
    ours = {k: v for k, v in fixed.items() if k.lstrip("+").partition(".")[0] not in IGNORED_KEYS}
    before = study.user_attrs.get(FIXED)
    values = any(trial.value is not None for trial in study.get_trials(deepcopy=False))
    if before is None or not values:
        study.set_user_attr(FIXED, ours)
        return
    differing = [key for key in {**before, **ours} if before.get(key) != ours.get(key)]
    if differing:
        key = differing[0]
        then = f"{key}={before[key]}" if key in before else f"no {key}"
        raise ConfigError(
            key.lstrip("+"),
            ours.get(key, UNSET),
            f"the search in {folder} was begun with {then}, so its values cannot be compared",
            "give this one a name of its own, sweep.name=<name>",
        )


def retry_failed_trials(study: Any, space: Collection[str]) -> None:
    """Queue the settings of failed trials as new trials, each failed trial once."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    for trial in trials:
        failed = trial.state == import_optuna().trial.TrialState.FAIL
        if failed and trial.number not in retried and set(space) <= trial.params.keys():
            study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})


@contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of the search in this folder; trials left running belong to dead processes.

    Raises:
        HydraException: Another process holds the lock.
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


def print_best(folder: Path) -> None:
    """Print the best settings of the search in this folder, as overrides."""
    if not (folder / BEST_FILE).is_file():
        return
    best = OmegaConf.load(folder / BEST_FILE)
    print(f"Best: {best.value:.4f}, trial {best.trial} ({folder / BEST_FILE})")
    print(" ".join(f"{key}={value}" for key, value in best.params.items()), flush=True)


def distribution(override: Override) -> Any:
    """Convert a sweep in Hydra's syntax to a distribution of Optuna."""
    distributions = import_optuna().distributions
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    low, high, logarithmic = value.start, value.end, "log" in value.tags
    if isinstance(low, int) and isinstance(high, int):
        return distributions.IntDistribution(low, high, log=logarithmic)
    return distributions.FloatDistribution(float(low or 0), float(high or 0), log=logarithmic)
