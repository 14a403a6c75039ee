"""Normalization and quoting of command-line overrides."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from kd_prune.errors import ConfigError

FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m",
    "--shell-completion", "-sc", "--experimental-rerun", "--info", "-i", "--cfg", "-c",
    "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
)  # fmt: skip
"""Flags of Hydra's command line."""
FLAGS_WITH_VALUE = FLAGS[FLAGS.index("--experimental-rerun") :]
"""Those that take a value."""
INFO_TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""Values of ``--info``, which may also stand without one."""


def normalize_argv(arguments: Sequence[str]) -> list[str]:
    """Put flags first, and add ``model=pretrained`` if only `model.path` is given for the model.

    argparse takes no overrides on both sides of a flag. A path replaces the default model=tiny,
    whose learning rates and epochs (``conf/budget/tiny.yaml``) are for random weights.

    Raises:
        ConfigError: Hydra has no such flag.

    >>> normalize_argv(["seed=1,2", "-m", "model.path=folder", "--config-dir", "mine"])
    ['-m', '--config-dir', 'mine', 'seed=1,2', 'model=pretrained', 'model.path=folder']
    """
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        flag, given, _ = argument.partition("=")
        if flag not in FLAGS:
            raise ConfigError(flag, expected="there is no such flag")
        flags.append(argument)
        may_follow = rest and (flag not in ("--info", "-i") or rest[0] in INFO_TOPICS)
        if flag in FLAGS_WITH_VALUE and not given and may_follow:
            flags.append(rest.pop(0))
    paths = [i for i, override in enumerate(overrides) if override.startswith("model.path=")]
    if paths and not any(override.startswith("model=") for override in overrides):
        overrides.insert(paths[0], "model=pretrained")
    return flags + overrides


def quoted(value: str) -> str:
    r"""Quote a text for Hydra's grammar of overrides.

    >>> print(quoted("/my runs/lr=1"))
    "/my runs/lr=1"
    """
    return '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))


def quote_override(key: str, value: str) -> str:
    """Quote an override for both the shell and Hydra.

    >>> quote_override("ckpt_path", "/runs/a/last.ckpt")
    'ckpt_path=/runs/a/last.ckpt'
    >>> print(quote_override("ckpt_path", "/my runs/lr=1/last.ckpt"))
    'ckpt_path="/my runs/lr=1/last.ckpt"'
    """
    plain = re.fullmatch(r"[\w./:+-]*", value)
    return shlex.quote(f"{key}={value if plain else quoted(value)}")
