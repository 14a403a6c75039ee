"""Tables of the comparison with peers, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

BASE = "kd_prune"
"""The column that the others are compared with."""
MARKS = "<!-- tables: begin -->", "<!-- tables: end -->"


def percent(value: float, digits: int = 1) -> str:
    """Write a share in percent: 95.0 %; a share below 1 is never rounded to 100 %."""
    if 1 - 10.0 ** -(digits + 2) / 2 < value < 1:
        return f"> {100 - 10.0**-digits:.{digits}f} %"
    return f"{100 * value:.{digits}f} %"


def count_error(found: Mapping[str, Any]) -> str:
    """Write the sparsity and by how many weights the count is wrong."""
    wrong = found["got"] - found["asked"]
    return f"{percent(found['got'] / found['weights'], 2)} ({f'{wrong:+,}' if wrong else 'exact'})"


def after_resume(found: Mapping[str, Any]) -> str:
    """Describe the first step and the end of a resumed run."""
    if "error" in found:
        return f"raises {found['error']}"
    first, straight = percent(found["first"]), percent(found["first_uninterrupted"])
    text = f"{first} (uninterrupted {straight}), at the end {percent(found['end'])}"
    if loop := found.get("loop"):
        text += f"; in a loop without Lightning {percent(loop['first'])}, {percent(loop['end'])}"
    return text


def equality(found: Mapping[str, Any]) -> str:
    """Say for both resumed runs whether they end bitwise equal."""
    empty = " (all zero)" if found["got"] == found["weights"] else ""
    return ", ".join(
        f"{when}: {f'yes{empty}' if found['resumed'][key].get('bitwise') else 'no'}"
        for key, when in (("half", "half"), ("late", "after the ramp"))
    )


def pruned_elsewhere(found: Mapping[str, Any]) -> str:
    """Describe zeros outside the weights that were to be pruned."""
    shares = {"biases": found["bias_zeros"], "embeddings": found["embedding_zeros"]}
    hit = [f"{percent(share)} of {what} zero" for what, share in shares.items() if share > 0]
    return ", ".join(hit) or "no"


def key_differences(found: Mapping[str, Any]) -> str:
    """Compare the keys of a checkpoint with the plain module's."""
    if not found["keys_missing"] and not found["keys_unexpected"]:
        return "same"
    return f"{found['keys_missing']} missing, {found['keys_unexpected']} unexpected"


BEHAVIOUR_ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Asked for 95 %, counted at the end": count_error,
    "Sparsity rises per": lambda f: (
        f"{'step' if f['rises_within_epochs'] else 'epoch'}; risen {f['rises']}x"
    ),
    "Frozen teacher changed": lambda f: (
        f"yes, {percent(f['teacher_zeros'])} of weights zero" if f["teacher_changed"] else "no"
    ),
    "Biases, embeddings pruned": pruned_elsewhere,
    "Resumed at half of the run": lambda f: after_resume(f["resumed"]["half"]),
    "Resumed after the ramp": lambda f: after_resume(f["resumed"]["late"]),
    "Resumed equals uninterrupted, bit by bit": equality,
    "State-dict keys of a checkpoint": key_differences,
    "Loads with `weights_only=True`": lambda f: "yes" if f["weights_only"] else "no",
}


def ratios(found: Mapping[str, Any]) -> list[float]:
    """Extra time of each step, relative to the plain step next to it."""
    return [b / a - 1 for a, b in zip(found["plain_step"], found["step"], strict=True)]


def added(found: Mapping[str, Any]) -> float:
    """Extra time of a step with fixed masks, relative to a plain step."""
    if found["hold_alone"]:  # projection is a call of its own and was timed alone
        return statistics.median(
            a / b for a, b in zip(found["hold_alone"], found["plain_step"], strict=True)
        )
    return statistics.median(ratios(found))


def whole_steps(found: Mapping[str, Any]) -> str:
    """Write the median and the quartiles of the differences."""
    low, middle, high = statistics.quantiles(ratios(found), n=4)
    return f"{100 * middle:+.1f} % ({100 * low:+.1f} … {100 * high:+.1f})"


def update_cost(found: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Write the median seconds, and the median ratio to kd_prune's updates."""
    ratio = statistics.median(a / b for a, b in zip(found["updates"], base["updates"], strict=True))
    return f"{statistics.median(found['updates']):.3g} s ({ratio:.1f}x)"


def total_overhead(
    name: str, found: Mapping[str, Any], updates: int = 100, steps: int = 10_000
) -> float:
    """Extra time over a ramp; PAT's masks are applied only on steps that update them."""
    per_step = statistics.median(found["updates"]) / statistics.median(found["plain_step"])
    return per_step if name == "torchao PAT" else added(found) + per_step * updates / steps


def cost_rows(found: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Rows of the cost table: name → cells."""
    base = found[BASE]
    alone = ["–" if not f["hold_alone"] else f"{100 * added(f):.1f} %" for f in found.values()]
    return {
        "Step with masks fixed, beyond a plain step": [whole_steps(f) for f in found.values()],
        "The same, zeroing timed alone": alone,
        "Mask update, median of five (ratio to kd_prune)": [
            update_cost(f, base) for f in found.values()
        ],
        "Added over a ramp of 10,000 steps and 100 updates": [
            f"{100 * total_overhead(name, f):.1f} %" for name, f in found.items()
        ],
        "Held between steps after one update, after five; bytes per weight": [
            f"{f['bytes_per_weight'][0]:.2f}, {f['bytes_per_weight'][-1]:.2f}"
            for f in found.values()
        ],
        "Asked for 95 %, counted": [count_error(f) for f in found.values()],
    }


def table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Write a table as lines of Markdown."""
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *cells] for name, cells in rows.items()]
    return [f"| {' | '.join(line)} |" for line in lines]


def markdown(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Write all tables; `titles` describes each shape."""
    did = result["behaviour"]
    rows = {row: [show(f) for f in did.values()] for row, show in BEHAVIOUR_ROWS.items()}
    lines = ["### Behaviour", "", *table(list(did), rows)]
    for shape, found in result["cost"].items():
        step = statistics.median(s for f in found.values() for s in f["plain_step"])
        title = f"{titles[shape]}; plain step {step:.2f} s"
        lines += ["", f"### Cost, {title}", "", *table(list(found), cost_rows(found))]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"{versions}. {result['machine']['cpu']}, one thread, CPU seconds."]
    return "\n".join(lines)


def rewrite(page: Path, text: str) -> None:
    """Replace the tables between the marks of a page."""
    before, rest = page.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")
