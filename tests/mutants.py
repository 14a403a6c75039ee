"""Do the tests notice? Faults put into the code one at a time: ``make mutants``.

Each mutant is a copy of the package with one line changed, and the tests that ought to fail. A
mutant that survives, or whose line is not found, makes the command fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120  # seconds; the slowest tests here take a third of it


@dataclass(frozen=True)
class Mutant:
    """One fault: in `file`, `before` becomes `after`; `tests` are to notice."""

    name: str
    file: str
    before: str
    after: str
    tests: str


PRUNER = "tests/pruning/test_pruner.py"
CALLBACK = "tests/lit/test_callback.py"
PLUG_IN = "tests/lit/test_plug_in.py"
ODD_LOOPS = "tests/lit/test_odd_loops.py"
MUTANTS = [
    Mutant(
        "the ramp's last update never comes",
        "pruning/schedule.py", "for k in range(updates + 1)]", "for k in range(updates)]",
        "tests/pruning/test_schedule.py",
    ),
    Mutant(
        "quadratic for cubic",
        "pruning/schedule.py", "(1.0 - u) ** 3", "(1.0 - u) ** 2",
        "tests/pruning/test_schedule.py",
    ),
    Mutant(
        "the ramp starts late",
        "pruning/schedule.py", "if progress < self.begin:", "if progress <= self.begin:",
        "tests/pruning/test_schedule.py",
    ),
    Mutant(
        "weights that are no numbers are ranked",
        "pruning/pruner.py", "if holds_nan(magnitudes):", "if False:",
        PRUNER,
    ),
    Mutant(
        "a state goes on with any ramp",
        "pruning/pruner.py", "        self._same_ramp(state)\n", "",
        PRUNER,
    ),
    Mutant(
        "a pattern is asked for more than it has",
        "pruning/nm.py", "count = self.reachable(count, scores.shape)", "pass",
        "tests/pruning/test_granularity.py",
    ),
    Mutant(
        "an allocation is tried with today's scores only",
        "pruning/pruner.py", "refuse_out_of_reach(self.select, worst,",
        "refuse_out_of_reach(self.select, self._counts(final),",
        "tests/pruning/test_granularity.py",
    ),
    Mutant(
        "ties are kept by the wrong end",
        "pruning/mask.py", "ties[-spared:]", "ties[:spared]",
        "tests/pruning/test_mask.py",
    ),
    Mutant(
        "a threshold takes ties along",
        "pruning/mask.py", "hits(values, operator.gt, threshold)",
        "hits(values, operator.ge, threshold)",
        "tests/pruning/test_mask.py",
    ),
    Mutant(
        "a sample that misled is believed",
        "pruning/mask.py", "if 0 <= staying <= len(between):", "if True:",
        "tests/pruning/test_mask.py",
    ),
    Mutant(
        "counts are cut off, not rounded",
        "pruning/mask.py", "return round(sparsity * size)", "return int(sparsity * size)",
        "tests/pruning/test_mask.py",
    ),
    Mutant(
        "pruned weights come back",
        "pruning/pruner.py", "mask = mask & self.masks[name]", "pass",
        "tests/pruning",
    ),
    Mutant(
        "the largest weights go",
        "pruning/criterion.py", "return weight.abs()", "return -weight.abs()",
        "tests/pruning",
    ),
    Mutant(
        "an update is made twice",
        "pruning/pruner.py", "self._plan_steps[due - 1] <= self._updated_at", "False",
        PRUNER,
    ),
    Mutant(
        "an update is a step late",
        "pruning/pruner.py", "bisect_right(self._plan_steps, step)",
        "bisect_right(self._plan_steps, step - 1)",
        PRUNER,
    ),
    Mutant(
        "the masks are not saved",
        "pruning/pruner.py", 'mask.copy_(state["masks"][name])', "pass",
        PRUNER,
    ),
    Mutant(
        "a resumed run makes a ramp of its own",
        "pruning/pruner.py", 'self._plan_for(state["total_steps"])', "pass",
        PRUNER,
    ),
    Mutant(
        "regrown weights keep their momentum",
        "pruning/pruner.py", "self._forget(self.parameters[name], changed)", "pass",
        PRUNER,
    ),
    Mutant(
        "projection comes before the step",
        "lit/steps.py", "register_step_post_hook(after)",
        "register_step_pre_hook(after)",
        f"{CALLBACK} {PLUG_IN}",
    ),
    Mutant(
        "no projection between two updates",
        "lit/steps.py",
        "            pruner.project(optimizer if moving else None)\n",
        "",
        CALLBACK,
    ),
    Mutant(
        "a step projects what other networks' backward passes wait for",
        "lit/steps.py", "pruner.project(optimizer if moving else None)", "pruner.project()",
        ODD_LOOPS,
    ),
    Mutant(
        "a fit takes the earlier one's masks for a checkpoint's",
        "lit/callback.py",
        "            self.pruner = None\n        self._elsewhere",
        "            pass\n        self._elsewhere",
        ODD_LOOPS,
    ),
    Mutant(
        "broken gradients are evidence",
        "pruning/pruner.py", "evidence[name].nan_to_num(0.0, 0.0, 0.0)", "evidence[name]",
        PRUNER,
    ),
    Mutant(
        "a skipped step updates",
        "lit/callback.py", "if self.pruner is None or not self._steps.take():",
        "if self.pruner is None:",
        PLUG_IN,
    ),
    Mutant(
        "the end does not make up for a skipped last step",
        "lit/callback.py", "self._update(self.pruner, self._length.total)", "pass",
        PLUG_IN,
    ),
    Mutant(
        "every rank has masks of its own",
        "lit/callback.py", "dist.broadcast(mask.view(torch.uint8), 0)", "pass",
        "tests/lit/test_ddp.py",
    ),
    Mutant(
        "what the optimizers do not hold is pruned too",
        "pruning/scope.py", "if p.requires_grad} & set[int]().union(*groups)", "}",
        "tests/pruning/test_scope.py",
    ),
    Mutant(
        "averaged weights stay dense",
        "lit/callback.py",
        "        self._steps.stop()\n        self.pruner.project()",
        "        self._steps.stop()",
        PLUG_IN,
    ),
    Mutant(
        "every optimizer's steps count",
        "lit/run_length.py", "if not trainer.lightning_module.automatic_optimization:", "if False:",
        PLUG_IN,
    ),
    Mutant(
        "padding counts in hidden states",
        "distillation/losses.py", "difference.masked_fill_(~keep, 0.0)", "difference",
        "tests/distillation/test_losses.py",
    ),
    Mutant(
        "no T² on soft targets",
        "distillation/losses.py", " * temperature**2", "",
        "tests/distillation/test_losses.py",
    ),
    Mutant(
        "the teacher has dropout on",
        "lit/module.py", "teacher.requires_grad_(False).eval()", "teacher.requires_grad_(False)",
        "tests/lit/test_module.py",
    ),
    Mutant(
        "the ramp does not rest",
        "pruning/schedule.py", "+ hold * rests",
        "+ 0 * rests",
        "tests/pruning/test_schedule.py",
    ),
    Mutant(
        "a run goes on from a milestone's mean",
        "run/milestones.py", "weight.copy_(kept[name])",
        "pass",
        "tests/test_run.py -k saving",
    ),
    Mutant(
        "a milestone is almost the last step",
        "run/milestones.py", "1 / self._count",
        "0.9",
        "tests/test_run.py -k milestone",
    ),
    Mutant(
        "the difference the wrong way round",
        "sweep/summary.py", "Statistic.of(s - t for",
        "Statistic.of(t - s for",
        "tests/sweep/test_summary.py",
    ),
    Mutant(
        "a seed counts twice",
        "sweep/summary.py", "group[run.seed] = (run, point)",
        "group[len(group)] = (run, point)",
        "tests/sweep/test_summary.py",
    ),
    Mutant(
        "a NaN counts",
        "sweep/collect.py", "or not math.isfinite(value)",
        "or False",
        "tests/sweep/test_collect.py",
    ),
    Mutant(
        "a failure is recorded as a success",
        "sweep/status.py", '"state", "failed")',
        '"state", "finished")',
        "tests/cli/test_sweep.py -k failure",
    ),
    Mutant(
        "what is finished is made again",
        "sweep/job.py", "if done is not None:",
        "if False:",
        "tests/cli/test_sweep.py -k failure",
    ),
    Mutant(
        "a trial is judged on its ramp",
        "sweep/search.py", "sparsity < self.final - 1e-3",
        "sparsity < 0",
        "tests/cli/test_search.py -k final",
    ),
    Mutant(
        "a job takes itself for a part of the one before",
        "run/fit.py", "os.environ.pop(name, None)",
        "pass",
        "tests/cli/test_ddp.py -k sweep",
    ),
    Mutant(
        "a checkpoint waits for the handler",
        "lit/resume.py", "if number not in self._theirs:",
        "if True:",
        "tests/lit/test_resume.py -k handles",
    ),
]  # fmt: skip


def killed(mutant: Mutant, folder: Path) -> bool:
    """Whether the tests fail on a copy of the project with this fault."""
    path = folder / "kd_prune" / mutant.file
    source = path.read_text()
    if source.count(mutant.before) != 1:
        sys.exit(f"{mutant.name}: {mutant.before!r} is not found once in {mutant.file}")
    path.write_text(source.replace(mutant.before, mutant.after))
    tests = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", *mutant.tests.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = tests.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return True  # tests that hang do not pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tests.pid, signal.SIGKILL)  # what they started too
        tests.wait()
        path.write_text(source)
    if tests.returncode not in (0, 1):  # 1: tests were run, and some failed
        sys.exit(f"{mutant.name}: pytest could not run\n{printed[-2000:]}")
    return tests.returncode == 1


def main() -> None:
    """Try every mutant, or those whose name contains one of the arguments."""
    wanted = [m for m in MUTANTS if not sys.argv[1:] or any(a in m.name for a in sys.argv[1:])]
    survivors = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("kd_prune", "hydra_plugins", "tests", "conf"):
            shutil.copytree(ROOT / name, folder / name)
        for name in ("pyproject.toml", "train.py", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        for number, mutant in enumerate(wanted, 1):
            dead = killed(mutant, folder)
            survivors += [] if dead else [mutant.name]
            verdict = "killed" if dead else "SURVIVED"
            print(f"{number:2}/{len(wanted)} {verdict:8} {mutant.name}", flush=True)
    if survivors:
        sys.exit(f"the tests did not notice: {', '.join(survivors)}")


if __name__ == "__main__":
    main()
