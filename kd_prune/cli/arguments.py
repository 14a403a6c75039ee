"""Normalization and quoting of command-line overrides."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from kd_prune.cli.locations import CONF
from kd_prune.config_utils import quote_value
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
    folders = [CONF, *(Path(given) for given in values_of(flags, ("--config-dir", "-cd")))]
    return flags + [expanded(override, folders) for override in overrides]


def values_of(flags: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the values of some flags, written ``--flag value`` or ``--flag=value``.

    >>> values_of(["-m", "--config-dir", "a", "-cd=b"], ["--config-dir", "-cd"])
    ['a', 'b']
    """
    found = []
    for flag, following in zip(flags, [*flags[1:], ""], strict=False):
        name, given, value = flag.partition("=")
        if name in names:
            found.append(value if given else following)
    return found


def expanded(override: str, folders: Sequence[Path]) -> str:
    """List the options that a glob with folders names; Hydra's own glob does not enter folders.

    Raises:
        ConfigError: The glob matches no option.

    >>> expanded("experiment=glob(paradigm/*ing)", [CONF]).count(",")
    2
    >>> expanded("experiment=glob(*)", [CONF])
    'experiment=glob(*)'
    """
    found = re.fullmatch(r"([\w/]+)=glob\(([\w./*?\[\]-]+/[\w./*?\[\]-]+)\)", override)
    if not found:
        return override
    group, pattern = found.groups()
    files = {file for folder in folders for file in (folder / group).glob(f"{pattern}.yaml")}
    names = {str(f.relative_to(d / group)) for f in files for d in folders if f.is_relative_to(d)}
    options = sorted(name.removesuffix(".yaml") for name in names)
    if not options:
        raise ConfigError(group, f"glob({pattern})", "matches no option", f"see conf/{group}/")
    return f"{group}={','.join(options)}"


def quote_override(key: str, value: str) -> str:
    """Quote an override for both the shell and Hydra.

    >>> quote_override("ckpt_path", "/runs/a/last.ckpt")
    'ckpt_path=/runs/a/last.ckpt'
    >>> print(quote_override("ckpt_path", "/my runs/lr=1/last.ckpt"))
    'ckpt_path="/my runs/lr=1/last.ckpt"'
    """
    plain = re.fullmatch(r"[\w./:+-]*", value)
    return shlex.quote(f"{key}={value if plain else quote_value(value)}")
