"""``kd-prune eval <folder>``: evaluate a saved model, as ``kd-prune train eval=<folder>`` does."""

from __future__ import annotations

import sys
from pathlib import Path

from kd_prune.cli import train
from kd_prune.config_utils import quote_value

OUT = "outputs/eval/${now:%Y-%m-%d_%H-%M-%S_%f}"
"""Run folder of an evaluation; the task is known only from the model's own run."""

HELP = """\
usage: kd-prune eval <folder> [key=value ...]

Evaluate a saved model: its metrics on the validation splits and its zeros, as counted. Nothing is
trained. A run folder, or the student in it, is evaluated on the task of that run; with any other
model folder or hub id name the task. The result is printed and written to evaluation.json.

examples:
  kd-prune eval outputs/mrpc/<run>
  kd-prune eval outputs/mrpc/<run>/milestones/0.5
  kd-prune eval outputs/mrpc/<run> task.validation=[test]
  kd-prune eval textattack/bert-base-uncased-MRPC task=mrpc
  kd-prune eval outputs/mrpc/<run> task.path=<folder with other rows>

main keys:
  task, task.path, task.validation, task.metrics    what the model is evaluated on
  task.eval_batch_size, trainer.accelerator         how it is evaluated
  hydra.run.dir                                     the folder for evaluation.json"""


def is_override(argument: str) -> bool:
    """Return whether an argument is an override, ``key=value``, and not an existing folder."""
    return "=" in argument and not Path(argument).exists()


def main(arguments: list[str]) -> None:
    """Evaluate the model that the first argument names."""
    if {"-h", "--help"}.intersection(arguments):
        print(HELP)
        return
    first = arguments[0] if arguments else ""
    if not first.strip() or first.startswith("-") or is_override(first):
        sys.exit("error: kd-prune eval: name the model first, kd-prune eval <folder or hub id>")
    folder, *overrides = arguments
    if not any(override.startswith("hydra.run.dir=") for override in overrides):
        overrides.append(f"hydra.run.dir={OUT}")
    train.main([f"eval={quote_value(folder)}", *overrides])
