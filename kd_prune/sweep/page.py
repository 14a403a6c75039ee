"""Page: a sweep as one HTML file that needs no other file and no network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from kd_prune import atomic_io
from kd_prune.sweep.page_data import page_data
from kd_prune.sweep.schema import Collection
from kd_prune.sweep.statistics import Summary

SCRIPTS = ("base.js", "filters.js", "tables.js", "labels.js", "figures.js", "page.js")
"""Parts of the page's script, in this order; they share one scope."""


def write_page(
    collection: Collection, summary: Summary, path: Path, *, title: str = "runs"
) -> None:
    """Write figures, tables, filters and the data into one HTML file.

    The page loads no other file. Texts of runs (names, reasons, values) are stored as data and
    shown as text, never as markup. The file is written atomically.

    Args:
        collection: The runs.
        summary: Their statistics.
        path: The HTML file.
        title: Heading of the page.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    web = files("kd_prune.sweep") / "web"
    page = (web / "page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(title),
        "CSS": (web / "page.css").read_text(encoding="utf-8"),
        "PLOTLY": get_plotlyjs(),
        "DATA": as_script(page_data(collection, summary)),
        "JS": "\n".join((web / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part)
    atomic_io.write(path, page)


def as_script(data: Mapping[str, Any]) -> str:
    r"""Write JSON that cannot end its block early: it contains no ``</script>`` and no ``<!--``.

    >>> print(as_script({"reason": "</script><!--"}))
    {"reason":"\u003c/script>\u003c!--"}
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, default=str)
    return text.replace("<", "\\u003c")
