"""Files that are whole, or the one before."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a text file beside and rename it: no reader, and no kill, ever meets half of it.

    Raises:
        OSError: The disk is full, or the folder cannot be written to; what was there stays.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8", newline="")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
