"""Entry point of ``kd-prune``, ``python -m kd_prune`` and ``train.py``; without torch and Hydra."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

import kd_prune
from kd_prune.cli import locations

COMMANDS = ("train", "eval", "sparsity", "summary", "export", "predict", "bench")
MODULES = {"eval": "evaluate"}
INFERENCE = (["bench"], ["predict"])
HELP = """\
usage: kd-prune <command> ...

Prune the weights of a transformer encoder while it learns a task from a teacher.

commands:
  train      fine-tune a teacher, prune a student while it learns from it, report; -m for a sweep
  eval       evaluate a run, a model folder or a hub id on its task; nothing is trained
  sparsity   count the zeros of every layer of a saved model
  summary    one table and one page of all runs below some folders
  export     a saved model packed, in half precision, as ONNX or OpenVINO, with a model card
  predict    the predictions of a saved model for the rows of a file
  bench      speed of saved models on this machine, dense and sparse

examples:
  kd-prune train                                       the embedded task and model, offline
  kd-prune train experiment=best task=mrpc model=minilm   a GLUE task and a model from the hub
  kd-prune train -m experiment=best task=mrpc model=minilm sparsity.final=0.8,0.95 seed=1,2,3
  kd-prune eval outputs/mrpc/<run>                     the metrics of a finished run's student
  kd-prune sparsity outputs/mrpc/<run>                 its zeros, layer by layer
  kd-prune summary outputs/sweeps/<sweep>              a sweep's table, also while it runs
  kd-prune export outputs/mrpc/<run> --format packed   its student as a small file
  kd-prune predict outputs/mrpc/<run> --file rows.csv  its predictions
  kd-prune bench outputs/mrpc/<run>                    sentences per second, dense and sparse

kd-prune <command> --help explains one command; kd-prune --version shows the version."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name.

    Args:
        arguments: Command and its arguments; None takes them from the command line.

    Raises:
        SystemExit: An error, in one line, or an interrupt (exit code 130).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] not in INFERENCE:
        # Set before torch is loaded: idle threads then sleep. Spinning threads make two runs on one
        # machine many times slower; threads that wake up slowly make short calls slow.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A user's own criterion or term may be a module in the current folder. The folder is last, so
    # that it hides no installed package.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        run_command(given)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted by SIGINT\n")
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `| head` closed the output; Python must not flush to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(arguments: list[str]) -> None:
    """Show the help or the version, or run one of `COMMANDS`."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
    elif arguments[0] in ("-V", "--version"):
        print(f"kd-prune {kd_prune.__version__}")
    elif arguments[0] in COMMANDS:
        load_command(arguments[0])(arguments[1:])
    else:
        meant = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {meant[0]}?" if meant else f"there are {', '.join(COMMANDS)}"
        sys.exit(f"error: kd-prune {arguments[0]}: there is no such command; {hint}")


def load_command(name: str) -> Callable[[list[str]], None]:
    """Import a command's module and return its `main`.

    Raises:
        SystemExit: A package is missing, most likely because another Python was started.
    """
    try:
        module = importlib.import_module(f"kd_prune.cli.{MODULES.get(name, name)}")
    except ModuleNotFoundError as missing:
        hint = locations.install_command()
        sys.exit(f"error: {sys.executable} has no package {missing.name}; {hint}")
    command: Callable[[list[str]], None] = module.main
    return command
