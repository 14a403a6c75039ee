"""Effect of distillation and of gradual pruning on the embedded task: ``make demo-ablation``.

Teacher and students take the same number of steps, with three seeds each; the table is printed
after every run. Figures are written to ``outputs/ablation.json``; with ``ARGS=--keep`` to
``benchmarks/results/ablation.json``, the source of docs/results.md's. Overrides apply to every
run: ``ARGS="trainer.max_epochs=12"``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import RESULTS, machine, mean_std, print_table, run_job, save

ROWS = {
    "SparseBERT": [],
    "pruned without distillation": ["distillation=none"],
    "one-shot pruning, distilled": ["sparsity=oneshot"],
    "one-shot pruning without distillation": ["sparsity=oneshot", "distillation=none"],
}


def main() -> None:
    """Run all rows and seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="overrides of train.py, for every run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--keep",
        action="store_true",
        help="replace the figures that are tracked in the repository",
    )
    arguments = parser.parse_args()
    scores: dict[str, list[float]] = {"teacher (dense)": [], **{name: [] for name in ROWS}}
    seconds: dict[str, list[float]] = {name: [] for name in scores}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in arguments.seeds:
            for name, overrides in ROWS.items():
                given = [f"seed={seed}", *overrides, *arguments.overrides]
                result = run_job(given, Path(scratch))
                stages = {name: result.student}
                if name == "SparseBERT":
                    stages["teacher (dense)"] = result.stages["teacher"]
                for row, stage in stages.items():
                    scores[row].append(stage.metrics["accuracy"])
                    seconds[row].append(stage.seconds)
                print_table(
                    f"accuracy after seed {seed}: {name}",
                    ("", "sparsity", "accuracy", "seeds"),
                    [
                        (row, "0 %" if "dense" in row else "95 %", mean_std(found), str(len(found)))
                        for row, found in scores.items()
                    ],
                )
    folder = RESULTS if arguments.keep else Path("outputs")
    figures = {"scores": scores, "seconds": seconds, "machine": machine()}
    print(f"Figures of every seed: {save(figures, 'ablation', folder)}")


if __name__ == "__main__":
    main()
