"""Prune while distilling: ``python train.py experiment=smoke``, ``python train.py --help``."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """Carry out the composed job; returns the metric that a sweep looks at."""
    from kd_prune.lit import NonFiniteError  # after composing: a misspelt key need not wait for it
    from kd_prune.run import run

    quiet()
    try:
        plain = OmegaConf.to_container(config, resolve=True)
        job = instantiate(config, _convert_="all")
        out = Path(HydraConfig.get().runtime.output_dir)
        job = dataclasses.replace(job, out=out, config=plain)
        return run(job)["student"][job.task.monitor]
    except (ValueError, InstantiationException, OmegaConfBaseException, NonFiniteError) as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise  # Hydra notes the failure and goes on with the next job
        logging.getLogger(__name__).debug("refused", exc_info=True)
        sys.exit(f"error: {one_line(error)}")


def quiet() -> None:
    """Keep libraries from talking between the progress bars; warnings still come through."""
    from datasets import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        disable_progress_bars()


def one_line(error: BaseException) -> str:
    """What was wrong, without Hydra's wrapping."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
