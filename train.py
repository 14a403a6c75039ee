"""Prune while distilling: ``python train.py experiment=smoke``, ``python train.py --help``."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any


def interrupted(kind: type[BaseException], error: BaseException, place: Any) -> None:
    """Say Ctrl-C in one line, and end with its exit code; other errors are shown as ever."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, place)
    sys.stderr.write("interrupted by SIGINT\n")
    sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    sys.excepthook = interrupted  # from here on: what follows takes seconds to import

# Before torch is loaded: its idle threads sleep rather than spin, or two runs on one machine would
# slow each other down many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    import hydra
    import yaml
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException, InstantiationException
    from hydra.types import RunMode
    from hydra.utils import instantiate
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from kd_prune.sweep import processes, search, settings, status
    from kd_prune.sweep.job import metric, one_of_many, unrecorded
except ModuleNotFoundError as missing:  # most likely another Python than that of .venv
    sys.exit(
        f"error: {sys.executable} has no package {missing.name}; "
        "say `make install`, then `. .venv/bin/activate`"
    )

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from kd_prune.run import Job

SCRIPT = Path(__file__).resolve()
NOT_THE_JOBS = ("eval", "search", "sweep", "hydra")


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """Carry out the composed job; returns the metric that a sweep looks at."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # speaks of fonts as it is loaded
    # After composing: a misspelt key need not wait for torch.
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from kd_prune.lit import NonFiniteError
    from kd_prune.lit.resume import Interrupted
    from kd_prune.run import PromiseError

    quiet()
    out = Path(HydraConfig.get().runtime.output_dir)
    about = description(config)
    try:
        many = HydraConfig.get().mode is RunMode.MULTIRUN
        if config.eval and many:
            result = unrecorded(out, about, lambda: carry_out(config, out))
        elif config.eval or processes.is_further():  # the first process keeps the records
            result = carry_out(config, out)
        elif many:
            retry = config.sweep.retry_failed
            result = one_of_many(
                out, about, lambda last: carry_out(config, out, last), retry_failed=retry
            )
        else:
            with status.at_work(out, about):
                result = carry_out(config, out)
        return metric(result, about["monitor"])
    except Interrupted as interrupted:
        if processes.is_further():
            return None
        sys.stderr.write(f"{interrupted}\n{how_to_go_on(interrupted.path, out)}\n")
        sys.exit(128 + interrupted.number)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning says nothing, and 1
            raise end.__context__ from None
        raise
    except Exception as error:
        ours = (ValueError, NonFiniteError, PromiseError, status.AtWorkError)
        foreseen = (*ours, MisconfigurationException)  # Lightning's word for settings it refuses
        if not isinstance(error, foreseen) and not status.disk_is_full(error):
            raise
        logging.getLogger(__name__).debug("refused", exc_info=True)
        sys.exit(f"error: {status.reason(error)}")


def carry_out(config: DictConfig, out: Path, last: str | None = None) -> Mapping[str, Any] | None:
    """Put the job together and run it, from its last checkpoint if there is one that can be read.

    The result is that of the first process; one further on has none.
    """
    from kd_prune.run import CheckpointError, evaluate_saved, run

    hydra_config = HydraConfig.get()
    many = hydra_config.mode is RunMode.MULTIRUN or processes.is_further()
    settings.check_choices(config, hydra_config.runtime.choices, many=many)
    if config.eval:
        return evaluate_saved(make_job(with_task_of(config, Path(config.eval)), out), config.eval)
    changes = [f"ckpt_path={last}"] if last else []
    job = make_job(config, out)
    job = dataclasses.replace(
        job,
        ckpt_path=last or job.ckpt_path,
        callbacks={**job.callbacks, **trial_callback(config)},
    )
    try:
        with processes.command_of_one_job(SCRIPT, out, changes):
            return run(job)
    except CheckpointError as error:
        if not last:
            raise
        logging.getLogger(__name__).warning("%s; training begins anew", error)
        return carry_out(config, out)


def make_job(config: DictConfig, out: Path) -> Job:
    """The job that is composed, with its record.

    Raises:
        ValueError: It cannot be put together; the message names the key.
    """
    from kd_prune.run import cache_folder, full_key

    try:
        plain = OmegaConf.to_container(config, resolve=True)
        settings.check_options(plain)
        check_labels(config)
        settings.check_missing(config)
        settings.check_types(plain)
        cache_folder(plain["cache_dir"])
        parts = OmegaConf.masked_copy(config, [key for key in config if key not in NOT_THE_JOBS])
        return dataclasses.replace(instantiate(parts, _convert_="all"), out=out, config=plain)
    except (ValueError, InstantiationException, OmegaConfBaseException) as error:
        raise ValueError(full_key(settings.one_line(error, config))) from error


def check_labels(config: DictConfig) -> None:
    """Find names of classes that YAML reads as something else (`task.labels=[0,1]`).

    Raises:
        ValueError: There are some.
    """
    labels = OmegaConf.select(config, "task.labels")
    if OmegaConf.is_list(labels) and not all(isinstance(label, str) for label in labels):
        words = [str(n).lower() if isinstance(n, bool) else str(n) for n in labels]
        names = ",".join(f'"{word}"' for word in words)
        raise ValueError(
            f"task.labels={labels}: names are text, which these are not; quote them: "
            f"'task.labels=[{names}]'"
        )


def trial_callback(config: DictConfig) -> dict[str, Callback]:
    """What ends a trial of a search that is not worth finishing; nothing for other jobs."""
    if config.search.trial is None:
        return {}
    from kd_prune.lit.judge import JudgeCallback

    final = OmegaConf.select(config, "sparsity.final") or 0.0
    judge = search.TrialJudge(final=final, **config.search)
    return {"search": JudgeCallback(judge, f"val/{config.task.monitor}")}


def with_task_of(config: DictConfig, folder: Path) -> DictConfig:
    """The configuration with the task of the run that made `folder`, unless the command names one.

    What the command sets of a task (`task.validation=[test]`) goes on top.

    Raises:
        ValueError: The folder asks for a call that is not ours; it may be anybody's.
    """
    from kd_prune.run import run_of

    theirs = status.read(run_of(folder)).get("config")
    given = [o.lstrip("+").partition("=")[0] for o in HydraConfig.get().overrides.task]
    if "task" in given or not isinstance(theirs, dict):
        return config

    def merged(ours: Any, theirs: Any, key: str) -> Any:
        if not isinstance(theirs, dict):
            return theirs
        ours = ours if isinstance(ours, dict) else {}
        if theirs.get("_target_") != ours.get("_target_"):
            raise ValueError(
                f"eval={folder}: its {key} is made by {theirs.get('_target_')}; "
                "name its task, as in the command that made it"
            )
        return ours | {k: merged(ours.get(k), v, f"{key}.{k}") for k, v in theirs.items()}

    plain = OmegaConf.to_container(config)
    plain["task"] = merged(plain["task"], theirs["task"], "task")
    whole = OmegaConf.create(plain)
    for key in given:
        if key.startswith("task."):
            OmegaConf.update(whole, key, OmegaConf.select(config, key), force_add=True)
    return whole


def description(config: DictConfig) -> dict[str, Any]:
    """What the job is, for the record; also where it cannot be put together."""
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:
        plain = None
    hydra_config = HydraConfig.get()
    return {
        "task": OmegaConf.select(config, "task.name"),
        "seed": OmegaConf.select(config, "seed"),
        "monitor": OmegaConf.select(config, "task.monitor"),
        "choices": {
            key: choice
            for key, choice in hydra_config.runtime.choices.items()
            if not key.startswith("hydra")
        },
        "overrides": list(hydra_config.overrides.task),
        "config": plain,
    }


def quiet() -> None:
    """Keep libraries from talking between the progress bars; users' warnings still come through."""
    from datasets import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # logs, in lines, what it raises
    logging.getLogger("huggingface_hub.utils._http").addFilter(OneForAllTries())
    hub_logging.disable_propagation()  # it has a handler of its own
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        disable_progress_bars()
    # Lightning 2.6 asks torch's tree for leaves the old way: news for its authors.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)


class OneForAllTries(logging.Filter):
    """Says once that the hub does not answer, where it would be said at each try for each file."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is printed; the first one that is, in other words."""
        message = record.getMessage()
        if "thrown while requesting" in message:
            return False
        if not message.startswith("Retrying in"):
            return True
        before, self.said = self.said, True
        record.msg, record.args = "The hub does not answer; trying on for up to a minute", ()
        return not before


def no_folder(error: OSError) -> str:
    """One line for a run folder that Hydra cannot make.

    Raises:
        OSError: `error` is of the job itself.
    """
    places = traceback.walk_tb(error.__traceback__)
    if any(frame.f_code.co_name == carry_out.__name__ for frame, _ in places):
        raise error
    key = "hydra.sweep.dir" if {"-m", "--multirun"}.intersection(sys.argv) else "hydra.run.dir"
    return (
        f"{key}: {error.filename} is no folder that can be written to ({error.strerror}); "
        f"name another: {key}=<folder>"
    )


def how_to_go_on(saved: Path, out: Path) -> str:
    """The command that continues; a sweep finds its checkpoints, and anyone finds a teacher's."""
    if saved.parent == out and HydraConfig.get().mode is not RunMode.MULTIRUN:
        return f"To go on, give the same command with {pasteable(f'ckpt_path={saved}')}"
    return "To go on, give the same command again"


def pasteable(override: str) -> str:
    """An override as a shell and Hydra both take it.

    >>> pasteable("ckpt_path=/runs/a/last.ckpt")
    'ckpt_path=/runs/a/last.ckpt'
    >>> print(pasteable("ckpt_path=/my runs/lr=1/last.ckpt"))
    'ckpt_path="/my runs/lr=1/last.ckpt"'
    """
    key, _, value = override.partition("=")
    if not re.fullmatch(r"[\w./:+-]*", value):
        value = '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))
    return shlex.quote(f"{key}={value}")


def completed(arguments: list[str]) -> list[str]:
    """The arguments with what goes without saying.

    `-m` comes first: argparse takes no overrides on both sides of it. A `model.path` alone is of
    `model=pretrained`: the default model's learning rates are for random weights.

    >>> completed(["seed=1,2", "-m", "model.path=folder"])
    ['-m', 'seed=1,2', 'model=pretrained', 'model.path=folder']
    """
    ordered = sorted(arguments, key=lambda given: given not in ("-m", "--multirun"))
    named = [i for i, given in enumerate(ordered) if given.startswith("model.path=")]
    if named and not any(given.startswith("model=") for given in ordered):
        ordered.insert(named[0], "model=pretrained")
    return ordered


if __name__ == "__main__":
    sys.argv[1:] = completed(sys.argv[1:])
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors arrive here instead of being printed
    try:
        main()
    except (HydraException, OmegaConfBaseException, ValueError) as problem:
        sys.exit(f"error: {settings.misspelt(problem, sys.argv[1:], SCRIPT.with_name('conf'))}")
    except BrokenProcessPool:
        sys.exit(
            "error: a worker was killed, most likely for want of memory; the same command goes on, "
            "with fewer jobs at once if need be (hydra.launcher.n_jobs)"
        )
    except yaml.MarkedYAMLError as problem:
        sys.exit(f"error: {settings.unreadable(problem)}")
    except OSError as problem:
        sys.exit(f"error: {no_folder(problem)}")
