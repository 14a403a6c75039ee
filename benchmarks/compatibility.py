"""What the callback was tried on: ``make bench-compatibility`` rewrites docs/compatibility.md.

Every case trains a small random network for 48 steps with ``SparsityCallback(0.8, updates=8)``.
Then the zeros are counted tensor by tensor, and the run is resumed from its middle by a new module
and a new callback: it has to end with the same bytes.
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import tempfile
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import compatibility_loops
import compatibility_networks
import compatibility_transformers
import lightning.pytorch as L
import torch
from compatibility_project import STEPS, Case
from rich.console import Console

from kd_prune.lit import SparsityCallback

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
FINAL = 0.8


@dataclass(frozen=True)
class Outcome:
    """What happened in one case."""

    pruned: int  # tensors
    dense: int  # tensors of two or more dimensions that train and were left
    counted: float  # zeros in the pruned tensors
    exact: bool  # zeros of every tensor are those of its mask, and as many as the target asks for
    resumed: bool  # the resumed run ends with the same bytes
    resumes_without: bool = True  # so does one without the callback; tried where ours does not


def main() -> None:
    """Run all cases, or those asked for; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only cases whose name contains one of these")
    parser.add_argument("--write", action="store_true", help="rewrite docs/compatibility.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    console = Console()
    outcomes: dict[Case, Outcome | str] = {}
    for case in (
        *compatibility_transformers.cases(),
        *compatibility_networks.cases(),
        *compatibility_loops.cases(),
    ):
        if arguments.names and not any(name in case.name for name in arguments.names):
            continue
        outcomes[case] = run(case)
        console.print(f"{case.group}: {case.name}: {outcomes[case]}")
    if arguments.write:
        PAGE.write_text(page(outcomes))
    wrong = [case.name for case, found in outcomes.items() if not passed(found)]
    console.print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} as they should be", wrong)


def passed(outcome: Outcome | str) -> bool:
    """Return whether a case was skipped, or did what was asked."""
    if isinstance(outcome, str):
        return outcome.startswith("skipped")
    return outcome.exact and (outcome.resumed or not outcome.resumes_without)


def run(case: Case) -> Outcome | str:
    """Run one case; return its outcome, or why there is none."""
    if not case.installed:
        return f"skipped: {case.needs} is not installed"
    try:
        callback = SparsityCallback(FINAL, scope=case.scope, updates=8, verbose=False)
        whole, resumed = fit_twice(case, callback)
        found = judge(whole, callback, resumed)
        return found if found.resumed else replace(found, resumes_without=same(*fit_twice(case)))
    except Exception as error:  # a row of the table, whatever it is
        said = str(error).splitlines() or ["no message"]
        return f"{type(error).__name__}: {said[0][:200]}"


def fit_twice(
    case: Case, callback: SparsityCallback | None = None
) -> tuple[L.LightningModule, L.LightningModule]:
    """Train a project, and again from the middle of the run with everything new."""
    with tempfile.TemporaryDirectory() as folder:
        again = callback.replace() if callback else None
        whole = fit(case, callback, Path(folder))
        return whole, fit(case, again, Path(folder) / "again", Path(folder) / "middle.ckpt")


def fit(
    case: Case, callback: SparsityCallback | None, folder: Path, resume: Path | None = None
) -> L.LightningModule:
    """Train a project, from the start or from a checkpoint."""
    L.seed_everything(1, verbose=False)
    project = case.make()
    settings = copy.copy(project.trainer)
    callbacks = [*settings.pop("callbacks", []), *([callback] if callback else []), Middle(folder)]
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=callbacks, **settings,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(project.batches, batch_size=None)
    trainer.fit(project.module, loader, ckpt_path=resume, weights_only=False)
    return project.module


class Middle(L.Callback):
    """Saves a checkpoint after the first of two epochs; seeds each epoch, for dropout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Seed an epoch: a resumed run draws what the other drew."""
        if args[-1] == 0:
            torch.manual_seed(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of the first epoch."""
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.folder / "middle.ckpt")


def judge(
    module: L.LightningModule, callback: SparsityCallback, again: L.LightningModule
) -> Outcome:
    """Count the zeros of every tensor, and compare with the resumed run."""
    assert callback.pruner is not None
    parameters = callback.pruner.parameters
    zeros = {name: int((p == 0).sum()) for name, p in parameters.items()}
    weights = sum(p.numel() for p in parameters.values())
    exact = all(
        bool(((weight == 0) == ~callback.pruner.masks[name]).all())
        and all(int((m == 0).sum()) == round(FINAL * m.numel()) for m in matrices(name, weight))
        for name, weight in parameters.items()
    )
    named = dict(module.named_parameters())
    taken = {id(p) for p in parameters.values()}
    dense = [p for p in named.values() if p.ndim > 1 and p.requires_grad and id(p) not in taken]
    counted = sum(zeros.values()) / weights
    return Outcome(len(parameters), len(dense), counted, exact, same(module, again))


def matrices(name: str, weight: torch.Tensor) -> list[torch.Tensor]:
    """Return the experts of a tensor that holds several, or else the tensor alone."""
    return list(weight) if "experts" in name and weight.ndim == 3 else [weight]


def same(one: L.LightningModule, other: L.LightningModule) -> bool:
    """Return whether all parameters and buffers are equal."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def page(outcomes: dict[Case, Outcome | str]) -> str:
    """Write the page: one table per group."""
    groups: dict[str, list[tuple[Case, Any]]] = defaultdict(list)
    for case, found in outcomes.items():
        groups[case.group].append((case, found))
    number = sum(not isinstance(found, str) for found in outcomes.values())
    lines = [
        "# What the callback was tried on",
        "",
        f"{number} small random networks, each trained for {2 * STEPS} steps with `SparsityCallback"
        f"({FINAL}, updates=8)`",
        "(adapters of a frozen base have to be named in a scope), on the CPU with torch "
        f"{torch.__version__.split('+')[0]}, Lightning {L.__version__} and Python "
        f"{platform.python_version()}.",
        "`make bench-compatibility` runs them again and rewrites this page; the projects are in",
        "`benchmarks/compatibility_*.py`.",
        "",
        "- **pruned**, **dense**: tensors with masks; tensors of two or more dimensions that train",
        "  and were left dense (embeddings, output layers).",
        "- **zeros**: share of zeros, counted in the pruned tensors. *exact*: each of them has as",
        f"  many zeros as {FINAL} of its weights, rounded, and exactly where its mask says.",
        "- **resumed**: a new module and a new callback, resumed from the middle of the run, end",
        "  with the same bytes in every parameter and buffer.",
    ]
    for group, rows in groups.items():
        lines += ["", f"## {group[0].upper()}{group[1:]}", ""]
        lines += ["| | pruned | dense | zeros | resumed |", "|---|---|---|---|---|"]
        for case, found in rows:
            if isinstance(found, str):
                lines.append(f"| {case.name} | {found} | | | |")
                continue
            lines.append(
                f"| {case.name} | {found.pruned} | {found.dense} | {100 * found.counted:.2f} %"
                f"{', exact' if found.exact else ''} | "
                f"{resumption(found)} |"
            )
    return "\n".join(lines) + "\n"


def resumption(outcome: Outcome) -> str:
    """Say how the resumed run ended."""
    if outcome.resumed:
        return "same bytes"
    return "differs" if outcome.resumes_without else "differs, also without the callback"


if __name__ == "__main__":
    main()
