"""Run by test_sharded_pruner.py in some processes: sharded pruners, compared with whole ones.

Every process trains the same parameters twice on the same gradients, sharded and whole, and then
compares masks, weights and states bit by bit.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from kd_prune.pruning import (
    ERK,
    NM,
    PLATON,
    AttentionHeads,
    Block,
    BlockFisher,
    Bounded,
    DiagonalFisher,
    Global,
    GroupAllocation,
    Heads,
    Movement,
    Pruner,
    Random,
    RigL,
    Rows,
    Schedule,
    ShardedPruner,
    SoftMovement,
    StatefulCriterion,
    Taylor,
    Threshold,
    Wanda,
    magnitude,
    uniform,
    unstructured,
)
from kd_prune.pruning.sharding import gather, shard_like

STEPS = 4
SHAPES = {  # of three processes, not all have as many rows, and of `narrow` one has none
    "0.attention.self.query.weight": (8, 8),
    "0.attention.self.key.weight": (8, 8),
    "0.attention.self.value.weight": (8, 8),
    "0.attention.output.dense.weight": (8, 8),
    "narrow": (2, 8),
    "columns": (4, 8),  # sharded by columns
    "conv": (5, 2, 4),
    "copied": (4, 8),  # whole in every process
}
PLACEMENTS = {"columns": Shard(1), "copied": Replicate()}


class Centred(StatefulCriterion):
    """A user's criterion that reads whole tensors, changes weights and counts updates."""

    def init_state(self, weight: Tensor) -> dict[str, Tensor]:
        return {"mean": torch.zeros_like(weight), "updates": torch.zeros(())}

    def observe(self, weight: Tensor, grad_or_input: Tensor, state: dict[str, Tensor]) -> None:
        state["mean"].lerp_(grad_or_input - grad_or_input.mean(), 0.5)

    def __call__(self, weight: Tensor, state: dict[str, Tensor]) -> Tensor:
        return (weight - weight.mean()).abs() + state["mean"].abs() + state["updates"]

    def compensate(self, weight: Tensor, dropped: Tensor, state: dict[str, Tensor]) -> None:
        weight[(weight != 0) & ~dropped] += weight[dropped].sum() * 0.01

    def after_update(self, state: dict[str, Tensor]) -> None:
        state["mean"].mul_(0.5)
        state["updates"].add_(1)


def sixth(scores: Tensor, count: int, kept: Tensor) -> Tensor:
    """A user's granularity."""
    return kept & (torch.arange(scores.numel()).view(scores.shape) % 6 != 0)


CRITERIA = [
    magnitude, Taylor(), Movement(), SoftMovement(penalty=1.0), PLATON(), DiagonalFisher(),
    Random(), Wanda(), Centred(),
]  # fmt: skip
ALLOCATIONS = [
    uniform, Global(), Global(floor=0.2, ceiling=0.95), Global(normalized=True), ERK(),
    GroupAllocation(ratios={"0.*": 2.0}), Bounded(allocation=Global(), floor=0.3),
    Threshold(threshold=0.5),
]  # fmt: skip
GRANULARITIES = [
    unstructured, NM(), Block(rows=1, columns=4), Rows(), Heads(size=2, axis=1),
    AttentionHeads(size=2), sixth,
]  # fmt: skip
REGROW = [False, True, RigL()]


QUICK: list[dict[str, object]] = [  # the parts that need most of each other
    {"criterion": Taylor(), "allocation": Global(), "regrow": RigL()},
    {"criterion": Centred(), "granularity": AttentionHeads(size=2), "regrow": True},
]


def configurations() -> list[dict[str, object]]:
    """Every part with the default ones, and every criterion with `Global` and regrowth."""
    found = [{"criterion": c} for c in CRITERIA]
    found += [{"allocation": a} for a in ALLOCATIONS[1:]]
    found += [
        {"granularity": g, "allocation": a}
        for g, a in product(GRANULARITIES[1:], (uniform, Global(ceiling=0.5)))
    ]
    found += [
        {"criterion": c, "allocation": Global(), "regrow": r}
        for c, r in product((Taylor(), Wanda(), Centred(), magnitude), REGROW[1:])
    ]
    return found


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    # Multiples of an eighth, so that scores are tied.
    return {
        name: nn.Parameter(torch.randint(-16, 17, shape, generator=generator) / 8)
        for name, shape in SHAPES.items()
    }


def compare(settings: dict[str, object], mesh) -> str:
    """Train with both pruners; return what differs, or nothing."""
    whole = parameters()
    parts = {
        name: nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [placement]))
        for (name, p), placement in zip(
            whole.items(), (PLACEMENTS.get(name, Shard(0)) for name in whole), strict=True
        )
    }
    pruners, optimizers = [], []
    for kind, own in ((Pruner, whole), (ShardedPruner, parts)):
        schedule = Schedule(final=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # full groups come no closer
            pruner = kind(own, schedule, total_steps=STEPS, updates=3, **settings)
        optimizer = torch.optim.SGD(own.values(), lr=0.1, momentum=0.9)
        pruner.track_optimizers([optimizer])
        pruners.append(pruner)
        optimizers.append(optimizer)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, STEPS + 1):
        inputs = {
            name: torch.randn(3, *shape[1:], generator=generator) for name, shape in SHAPES.items()
        }
        for name, weight in whole.items():
            weight.grad = torch.randint(-8, 9, weight.shape, generator=generator) / 16
            parts[name].grad = shard_like(weight.grad.clone(), parts[name])
        for pruner, optimizer in zip(pruners, optimizers, strict=True):
            pruner.observe_gradients(optimizer)
            if getattr(pruner.criterion, "observes", "") == "input":
                pruner.observe(inputs)
            optimizer.step()
            pruner.project()
            pruner.update(step)
            pruner.project()
    differing = difference(whole, parts, *pruners)
    return f"{settings}: {differing}" if differing else ""


def difference(whole, parts, expected: Pruner, found: ShardedPruner) -> str:
    """Say what differs in any process; every process calls all that is collective."""
    gathered = {name: gather(part) for name, part in parts.items()}
    state, saved = expected.state_dict(), found.state_dict()
    found.load_state_dict(state)
    again = found.state_dict()
    masks = {name: gather(mask) for name, mask in found.masks.items()}
    differs = {
        "weights": not same(gathered, {name: p.detach() for name, p in whole.items()}),
        "masks": not same(masks, expected.masks),
        "placements": any(m.placements != parts[n].placements for n, m in found.masks.items()),
        "preview": expected.preview() != found.preview(),
        "sparsity": expected.sparsity != found.sparsity,
        "state": dist.get_rank() == 0 and not same(state, saved),
        "loaded state": dist.get_rank() == 0 and not same(state, again),
    }
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, [key for key, value in differs.items() if value])
    return str(everywhere) if any(everywhere) else ""


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b


def raised(parts: dict[str, nn.Parameter], **settings: object) -> str:
    """Class and message of the error at the first update."""
    try:
        ShardedPruner(parts, Schedule(final=0.5), total_steps=1, updates=1, **settings).update(1)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def none_of_it(masks, score, sparsity):
    """A user's allocation with a defect."""
    return {name: mask.numel() + 1 for name, mask in masks.items()}


def errors(mesh) -> list[str]:
    """What this process is told where only the first one finds the defect."""
    rows = {"a": nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]))}
    bad = nn.Parameter(distribute_tensor(torch.full((4, 2), torch.nan), mesh, [Shard(0)]))
    return [
        raised(rows, allocation=none_of_it),
        raised(rows, granularity=NM(n=1, m=5)),
        raised({"a": bad}),
        raised({f"of {dist.get_rank()}": rows["a"]}),
        raised(rows, criterion=BlockFisher(block=5)),
    ]


def main(out: Path, which: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    chosen = QUICK if which == "quick" else configurations()
    failures = [failed for settings in chosen if (failed := compare(settings, mesh))]
    found = {"compared": len(chosen), "failures": failures, "errors": errors(mesh)}
    (out / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
