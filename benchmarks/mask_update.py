"""Cost of a mask update and of projection on BERT-base's 72 encoder matrices (84.9 M weights).

In one process: Pruner.update against the same uniform selection with torch.topk, a global update
against numpy.partition alone on the same number of scores, projection against masked_fill_. Times
are medians over the repeats; a ratio is the median of the ratios within each repeat. The uniform
updates of a complete ramp follow: their sums are the time that a run spends on mask updates. Memory
is the peak of the resident set during one global update.

With one thread, as numpy's selection and torch's topk of a flat tensor use anyway, times are CPU
seconds: on an idle machine they equal the clock, and other load on a busy machine changes them
least. With more threads (--threads 2) times are taken by the clock, as torch uses all threads.

What a CPU computes with matters most: torch's part follows its vector instructions (``simd`` in the
JSON), and numpy's selection has code of its own for AVX-512. A CPU that has it computes without it,
in both, where the environment has ``ATEN_CPU_CAPABILITY=avx2`` and
``NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR"``.

On a GPU (--device cuda) times are taken by the clock after synchronizing, memory is torch's own
count, and numpy is left out.

    python benchmarks/mask_update.py

Writes benchmarks/results/mask_update.json.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from torch import nn

from kd_prune.pruning import Global, Pruner, Schedule, ramp_updates
from kd_prune.pruning.selection import num_pruned

SHAPES = [(768, 768)] * 48 + [(3072, 768)] * 12 + [(768, 3072)] * 12
# Updates on SparseBERT's ramp of 100: the masks' sparsity before and after each.
RAMP = {0: 0.0} | ramp_updates(Schedule(final=0.95), total_steps=100)
UPDATES = {f"update {k}": (RAMP[k - 1], RAMP[k]) for k in (1, 20, 100)}
Stopwatch = Callable[[Callable[[], object]], float]
# Side that torch.topk selects, and whether it sorts, which is its default.
TOPK = {
    "topk of the kept": {"largest": True, "sorted": True},
    "topk of the kept, unsorted": {"largest": True, "sorted": False},
    "topk of the pruned": {"largest": False, "sorted": True},
}


def main() -> None:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-ramp", action="store_true", help="leave the ramp's sums out")
    parser.add_argument(
        "--out", type=Path, help="default: the JSON above, or …_avx2, …_2_threads, …_cuda"
    )
    arguments = parser.parse_args()
    suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
    if arguments.device == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        suffix += f"_{torch.backends.cpu.get_cpu_capability().lower()}"
    if arguments.threads > 1:
        suffix += f"_{arguments.threads}_threads"
    out = arguments.out or Path(__file__).parent / "results" / f"mask_update{suffix}.json"
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    seconds = stopwatch(arguments.device, arguments.threads)
    weights = {
        f"{i}.weight": nn.Parameter(torch.empty(shape).normal_(std=0.02).to(arguments.device))
        for i, shape in enumerate(SHAPES)
    }
    result = {
        "machine": machine(arguments.device),
        "weights": sum(weight.numel() for weight in weights.values()),
        "repeats": arguments.repeats,
        "memory": global_memory(weights),
        "times": {where: times(weights, where, arguments.repeats, seconds) for where in UPDATES},
        "ramp": None if arguments.skip_ramp else ramp(weights, seconds),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print_table(result)


def machine(device: str) -> dict[str, str | int]:
    """Describe the machine that the figures depend on."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return {"gpu": name, "python": platform.python_version(), "torch": torch.__version__}
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "numpy's simd": ", ".join(name for name in __cpu_dispatch__ if __cpu_features__[name]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def pruner_at(weights: dict[str, nn.Parameter], before: float, after: float, **options) -> Pruner:
    """Make a Pruner with masks at sparsity `before`; its step 2 raises it to `after`."""
    pruner = Pruner(
        weights,
        Schedule(final=after),
        total_steps=2,
        update_schedule=lambda schedule, **_: {1: before, 2: after},
        **options,
    )
    pruner.update(1)
    return pruner


def times(
    weights: dict[str, nn.Parameter], where: str, repeats: int, seconds: Stopwatch
) -> dict[str, dict[str, float]]:
    """Measure all contenders in turn: median seconds, and median ratios within each turn."""
    before, after = UPDATES[where]
    pruner = pruner_at(weights, before, after)
    overall = pruner_at(weights, before, after, allocation=Global())
    starts = [(p, copy.deepcopy(p.state_dict())) for p in (pruner, overall)]
    masks = starts[0][1]["masks"]
    baselines = {name: TopK(weights, masks, after, **options) for name, options in TOPK.items()}
    copies = {name: nn.Parameter(weight.detach().clone()) for name, weight in weights.items()}
    projector = Pruner(copies, None, total_steps=2)
    projector.load_state_dict(pruner.state_dict())
    contenders: dict[str, Callable[[], object]] = {
        "uniform": lambda: pruner.update(2),
        **baselines,
        "global": lambda: overall.update(2),
        "project": projector.project,
        "project, masked_fill_": lambda: fill(projector),
    }
    pairs = [(name, "uniform") for name in baselines] + [("project, masked_fill_", "project")]
    on_cpu = next(iter(weights.values())).device.type == "cpu"
    if on_cpu:
        scores = np.concatenate([w.detach().abs().flatten().numpy() for w in weights.values()])
        buffer = np.empty_like(scores)
        contenders["numpy.partition alone"] = lambda: buffer.partition(
            num_pruned(after, buffer.size)
        )
        pairs.append(("global", "numpy.partition alone"))
    runs: list[dict[str, float]] = []
    for turn in range(1, repeats + 1):
        if on_cpu:
            np.copyto(buffer, scores)
        for p, state in starts:
            p.load_state_dict(state)
        runs.append({name: seconds(action) for name, action in contenders.items()})
        found = ", ".join(f"{name} {runs[-1][name]:.3f} s" for name in ("uniform", "global"))
        print(f"{where}, turn {turn} of {repeats}: {found}", flush=True)
    for baseline in baselines.values():
        baseline.check(pruner)
    return {
        "seconds": {name: statistics.median(run[name] for run in runs) for name in contenders},
        "ratios": {
            f"{a} / {b}": statistics.median(run[a] / run[b] for run in runs) for a, b in pairs
        },
    }


def ramp(weights: dict[str, nn.Parameter], seconds: Stopwatch) -> dict[str, dict[str, float]]:
    """Measure all 100 uniform updates of a ramp: sums of seconds, and their ratios."""
    pruner = Pruner(weights, Schedule(final=0.95), total_steps=100)
    spent = dict.fromkeys(("uniform", *TOPK), 0.0)
    for step, sparsity in pruner.update_schedule.items():
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        baselines = {name: TopK(weights, before, sparsity, **TOPK[name]) for name in TOPK}
        for name, baseline in baselines.items():
            spent[name] += seconds(baseline)
        spent["uniform"] += seconds(lambda step=step: pruner.update(step))
        for baseline in baselines.values():
            baseline.check(pruner)
        if step % 10 == 0:
            so_far = ", ".join(f"{name} {spent[name]:.1f} s" for name in spent)
            print(f"a ramp's updates, {step} of {pruner.total_steps}: {so_far}", flush=True)
    return {
        "seconds": spent,
        "ratios": {f"{a} / uniform": spent[a] / spent["uniform"] for a in TOPK},
    }


def stopwatch(device: str, threads: int) -> Stopwatch:
    """Make a function that times a call: CPU time for one thread, else the clock."""

    def settle() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def seconds(action: Callable[[], object]) -> float:
        settle()
        start = clock()
        action()
        settle()
        return clock() - start

    clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
    return seconds


class TopK:
    """Uniform masks by torch.topk, of the scores to keep or, as torch.nn.utils.prune, to prune.

    `sorted` is topk's default; a mask does not need it.
    """

    def __init__(
        self,
        weights: dict[str, nn.Parameter],
        masks: dict[str, torch.Tensor],
        sparsity: float,
        *,
        largest: bool,
        sorted: bool,
    ) -> None:
        """Start from `masks`, which are not changed."""
        self.weights, self.masks, self.sparsity = weights, masks, sparsity
        self.largest, self.sorted = largest, sorted
        self.found: dict[str, torch.Tensor] = {}

    def scores(self, name: str) -> torch.Tensor:
        """Absolute weights; -inf where pruned."""
        return self.weights[name].detach().abs().masked_fill_(~self.masks[name], -torch.inf)

    def __call__(self) -> None:
        """Compute the masks."""
        for name, mask in self.masks.items():
            count = num_pruned(self.sparsity, mask.numel())
            k = mask.numel() - count if self.largest else count
            best = self.scores(name).flatten().topk(k, largest=self.largest, sorted=self.sorted)
            self.found[name] = torch.full_like(mask, not self.largest)
            self.found[name].view(-1)[best.indices] = self.largest

    def check(self, pruner: Pruner) -> None:
        """Check that both masks are equal, except among equal scores."""
        for name, mask in pruner.masks.items():
            assert mask.count_nonzero() == self.found[name].count_nonzero()
            differ = self.scores(name)[mask != self.found[name]]
            assert differ.unique().numel() <= 1


@torch.no_grad()
def fill(pruner: Pruner) -> None:
    """Project with masked_fill_."""
    for name, weight in pruner.parameters.items():
        weight.masked_fill_(~pruner.masks[name], 0.0)


def global_memory(weights: dict[str, nn.Parameter]) -> dict[str, float] | None:
    """Measure the peak memory of a first global update, beyond the memory in use before.

    None where Linux's /proc does not provide it.
    """
    pruner = pruner_at(weights, *UPDATES["update 1"], allocation=Global())
    if next(iter(weights.values())).device.type != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        pruner.update(2)
        return over_weights(torch.cuda.max_memory_allocated() - before, weights)
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def resident(field: str) -> int:
        lines = (line.split() for line in status.read_text().splitlines())
        return next(1024 * int(words[1]) for words in lines if words[0] == f"{field}:")

    try:
        ctypes.CDLL(None).malloc_trim(0)  # else the update would reuse memory of the first one
        clear.write_text("5")  # resets VmHWM to the memory in use
    except (OSError, AttributeError):
        return None
    before = resident("VmRSS")
    pruner.update(2)
    extra = resident("VmHWM") - before
    return over_weights(extra, weights)


def over_weights(extra: int, weights: dict[str, nn.Parameter]) -> dict[str, float]:
    """Return the bytes, and their ratio to the bytes of the weights."""
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    return {"weights_bytes": size, "extra_bytes": extra, "extra_over_weights": extra / size}


def print_table(result: dict) -> None:
    """Print the figures as tables."""
    print(json.dumps(result["machine"]))
    clock = "CPU " if result["machine"].get("threads") == 1 else ""
    where = list(result["times"])
    for part, unit in (("seconds", "s"), ("ratios", "x")):
        print(
            f"\n{'median ' + (clock if part == 'seconds' else '') + part:<44}"
            + "".join(f"{name:>12}" for name in where)
        )
        for row in result["times"][where[0]][part]:
            values = (result["times"][name][part][row] for name in where)
            print(f"{row:<44}" + "".join(f"{value:>10.3f} {unit}" for value in values))
    for row, value in (result["ramp"] or {"ratios": {}})["ratios"].items():
        print(f"all updates of a ramp, {row}: {value:.1f} x")
    if result["memory"]:
        print(
            f"\nglobal update, peak memory: {result['memory']['extra_over_weights']:.2f} x weights"
        )


if __name__ == "__main__":
    main()
