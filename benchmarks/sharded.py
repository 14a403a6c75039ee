"""Memory of a mask update of a sharded model: ``make bench-sharded``.

The matrices of BERT-base's encoder (85 M weights) are sharded over gloo processes on this machine.
Written to benchmarks/results/sharded.json: for every process the peak of its memory during an
update above that before it, beside the weights, masks and criterion states that it holds.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import machine, save
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from kd_prune.pruning import Global, Pruner, Schedule, ShardedPruner, Taylor, magnitude, uniform
from kd_prune.pruning.sharding import local_part

SHAPES = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
LAYERS = 12
METHODS = {
    "magnitude, uniform": {"criterion": magnitude, "allocation": uniform},
    "magnitude, Global": {"criterion": magnitude, "allocation": Global()},
    "Taylor, Global": {"criterion": Taylor(), "allocation": Global()},
}


def memory(entry: str) -> int:
    """An entry of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(entry)


def measure(method: str, processes: int) -> dict[str, object]:
    """Make a pruner and measure its second update, at which all is allocated that stays."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"{layer}.{i}": shape for layer in range(LAYERS) for i, shape in enumerate(SHAPES)}
    mesh = init_device_mesh("cpu", (processes,)) if processes > 1 else None
    weights = {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator)
        if mesh:
            weight = distribute_tensor(weight, mesh, [Shard(0)], src_data_rank=None)
            weight = weight.clone()  # without the memory of the whole
        weights[name] = nn.Parameter(weight)
    kind = ShardedPruner if mesh else Pruner
    pruner = kind(weights, Schedule(final=0.9), total_steps=4, updates=4, **METHODS[method])
    pruner.observe({name: weight.detach() for name, weight in weights.items()})
    pruner.update(1)
    pruner.project()
    held = sum(
        local_part(tensor).nbytes
        for tensors in (weights, pruner.masks, *pruner._criterion_state.values())
        for tensor in tensors.values()
    )
    ctypes.CDLL(None).malloc_trim(0)  # what is free counts as free
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    pruner.update(2)
    peak = memory("VmHWM") - before
    return {"held_mb": round(held / 1e6), "peak_mb": round(peak / 1e6)}


def worker(rank: int, processes: int, method: str, port: int, queue: mp.SimpleQueue) -> None:
    """Measure one process of several."""
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=processes)
    queue.put((rank, measure(method, processes)))
    if processes > 1:
        dist.destroy_process_group()


def main() -> None:
    """Measure every method on every number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--port", type=int, default=29655)
    arguments = parser.parse_args()
    rows = []
    for method in METHODS:
        for processes in arguments.processes:
            queue = mp.get_context("spawn").SimpleQueue()
            mp.spawn(worker, (processes, method, arguments.port, queue), processes)
            found = dict(queue.get() for _ in range(processes))
            first, others = found[0], [found[rank] for rank in range(1, processes)]
            row = {"method": method, "processes": processes, "first": first}
            if others:
                row["others_peak_mb"] = max(other["peak_mb"] for other in others)
            rows.append(row)
            print(row, flush=True)
            save({"machine": machine(), "rows": rows}, "sharded")


if __name__ == "__main__":
    main()
