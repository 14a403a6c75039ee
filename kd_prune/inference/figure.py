"""The figure of speed over compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Points = Sequence[tuple[float, float]]


def draw(panels: Mapping[str, Mapping[str, Points]], path: Path, title: str) -> None:
    """Draw sentences per second over compression, a panel per batch size, a line per engine.

    Where all models have nearly the same compression there are points and no lines.

    Args:
        panels: Title of a panel → engine → points (compression, sentences per second).
        path: The PNG file to write.
        title: What is above the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    figure = Figure(figsize=(4.2 * len(panels) + 2.2, 4), layout="constrained")
    FigureCanvasAgg(figure)
    engines = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    styles = {name: style(name, number) for number, name in enumerate(engines)}
    for number, (name, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        places = spaced(sorted({x for points in lines.values() for x, _ in points}))
        line = {} if len(places) > 1 else {"linestyle": "none"}  # models of one compression
        for engine, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), label=engine, **styles[engine] | line)
        axes.set_title(name, fontsize="medium")
        axes.set_xscale("log")
        if len(places) == 1:
            axes.set_xlim(places[0] / 2, places[0] * 2)
        axes.set_xticks(places)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("compression of the encoder's matrices (×)")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if number == 1:
            axes.set_ylabel("sentences per second")
    known = {
        label: line
        for axes in figure.axes
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        [known[name] for name in engines], engines, loc="outside right center", fontsize="small"
    )
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=150)


def style(engine: str, number: int) -> dict[str, Any]:
    """Return how an engine's line looks; kd_prune's are thick and without dashes."""
    color = f"C{number % 10}"
    if engine.startswith("kd_prune"):
        return {"color": color, "marker": "o", "linewidth": 2.5, "zorder": 3}
    return {"color": color, "marker": "os^v"[number % 4], "linewidth": 1.2, "linestyle": "--"}


def spaced(places: Sequence[float], ratio: float = 1.15) -> list[float]:
    """Return the tick places, without those too close to the one before to be labelled.

    >>> spaced([1, 2, 16, 17, 20])
    [1, 2, 16, 20]
    """
    kept: list[float] = []
    for place in places:
        if not kept or place >= ratio * kept[-1]:
            kept.append(place)
    return kept
