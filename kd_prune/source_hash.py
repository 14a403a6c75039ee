"""Source hash: what kd_prune computed earlier is reused only while its code is the same."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


@cache
def source_hash(*parts: str) -> str:
    """Hash the Python files of some parts of kd_prune to 16 hexadecimal digits.

    Args:
        parts: Subpackages, such as ``hf``, or files, such as ``pipeline/fitting.py``.
    """
    digest = hashlib.sha256()
    for part in parts:
        path = PACKAGE / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
