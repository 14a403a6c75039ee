"""Location of the configuration: inside the installed package, or next to it in a clone."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CLONE = None if (PACKAGE / "conf").is_dir() else PACKAGE.parent
"""Root of the clone that kd_prune is imported from; None for an installed wheel."""
CONF = CLONE / "conf" if CLONE else PACKAGE / "conf"
"""Root of Hydra's configuration groups."""


def file_to_write(option: str) -> str:
    """Return the instruction that says where to write a user's own option of a group.

    Args:
        option: Group and name, such as ``task/reviews``.
    """
    if CLONE:
        return f"write conf/{option}.yaml"
    return f"write <folder>{os.sep}{option}.yaml and add --config-dir <folder>"


def install_command() -> str:
    """Return the instruction that says how to install missing packages."""
    if CLONE:
        return "run `make install`, then `. .venv/bin/activate`"
    return "run `pip install kd_prune`"
