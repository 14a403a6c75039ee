"""The figure of speed over compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Points = Sequence[tuple[float, float]]


def draw(panels: Mapping[str, Mapping[str, Points]], path: Path, title: str) -> None:
    """Draw sentences per second over compression, a panel per batch size, a line per engine.

    Args:
        panels: Title of a panel → engine → points (compression, sentences per second).
        path: The PNG file to write.
        title: What is above the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        for engine, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=engine)
        axes.set_title(name)
        axes.set_xlabel("compression of the linear layers (×)")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if number == 1:
            axes.set_ylabel("sentences per second")
            axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=150)
