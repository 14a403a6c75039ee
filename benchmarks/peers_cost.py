"""Cost of each tool on a BERT: time of a step, time of a mask update, memory."""

from __future__ import annotations

import gc
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelPruning
from peers_tools import FINAL, HAS_TORCHAO, prune_optimizer, sparsifier
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from kd_prune import hf
from kd_prune.pruning import Pruner, Schedule

UPDATES = 5
"""Mask updates that are timed, on one cubic ramp."""


class Plain:
    """Plain fine-tuning with AdamW, the baseline."""

    name = "plain"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.train()
        self.weights = hf.encoder_scope(model).select(model)
        self.names = list(self.weights)
        self.prepare()
        self.optimizer = self.make_optimizer()

    def prepare(self) -> None:
        """Set the tool up, before the optimizer is made."""

    def make_optimizer(self) -> Optimizer:
        """Make AdamW of all parameters."""
        return AdamW(self.model.parameters(), lr=5e-5)

    def backward(self, batch: Mapping[str, Tensor]) -> None:
        """Run forward and backward."""
        self.model(**batch).loss.backward()

    def project(self) -> None:
        """Keep pruned weights at zero after an optimizer step."""

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """Take a training step."""
        self.backward(batch)
        self.optimizer.step()
        self.project()
        self.optimizer.zero_grad()

    def update(self, k: int) -> None:
        """Make the k-th mask update of `UPDATES`."""

    def in_scope(self) -> Iterator[Tensor]:
        """Weights in scope as the layers compute with them."""
        for name in self.names:
            yield self.model.get_submodule(name.removesuffix(".weight")).weight


class KDPrune(Plain):
    """Pruner of kd_prune."""

    name = "kd_prune"

    def prepare(self) -> None:
        """Make the masks."""
        self.pruner = Pruner(
            self.weights, Schedule(final=FINAL), total_steps=UPDATES, updates=UPDATES
        )

    def project(self) -> None:
        """Project."""
        self.pruner.project()

    def update(self, k: int) -> None:
        """Update and project."""
        self.pruner.update(k)
        self.pruner.project()


class Lightning(Plain):
    """ModelPruning without a Trainer and rewinding; amounts of the remaining weights."""

    name = "ModelPruning"

    def prepare(self) -> None:
        """Let the callback find its modules."""
        owners = [self.model.get_submodule(name.removesuffix(".weight")) for name in self.names]
        self.callback = ModelPruning(
            "l1_unstructured",
            parameters_to_prune=[(owner, "weight") for owner in owners],
            use_lottery_ticket_hypothesis=False,
        )
        self.callback.setup(None, self.model, "fit")

    def update(self, k: int) -> None:
        """Prune the share of the remaining weights that gives the ramp's next sparsity."""
        before, after = (Schedule(final=FINAL)(j / UPDATES) for j in (k - 1, k))
        self.callback.apply_pruning(1 - (1 - after) / (1 - before))


class TorchAO(Plain):
    """WeightNormSparsifier and CubicSL."""

    name = "torch.ao"

    def prepare(self) -> None:
        """Register the parametrizations."""
        self.sparsifier, self.scheduler = sparsifier(self.model, self.names, UPDATES)

    def update(self, k: int) -> None:
        """Step scheduler and sparsifier."""
        self.scheduler.step()
        self.sparsifier.step()


class PAT(Plain):
    """PruneOptimizer; each of its steps on the ramp is a mask update."""

    name = "torchao PAT"

    def make_optimizer(self) -> Optimizer:
        """Wrap the same AdamW."""
        return prune_optimizer(self.model, list(self.weights.values()), 5e-5, end=UPDATES)

    def update(self, k: int) -> None:
        """Take an optimizer step; `update_costs` subtracts AdamW's own part."""
        self.optimizer.param_groups[0]["min_sparsity"] = Schedule(final=FINAL)(k / UPDATES)
        self.optimizer.step()


CONTENDERS = [KDPrune, Lightning, TorchAO, *([PAT] if HAS_TORCHAO else [])]


def make_model(sizes: Mapping[str, int], folder: str | None) -> PreTrainedModel:
    """Load the model from the folder, or make one of these sizes with random weights."""
    if folder:
        return AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, dtype=torch.float32
        )
    config = BertConfig(num_labels=2, **sizes)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config)


def seconds(action: Callable[..., object], *arguments: Any) -> float:
    """Measure the CPU time of one call."""
    start = time.process_time()
    action(*arguments)
    return time.process_time() - start


def tensor_bytes(*roots: object) -> int:
    """Count the bytes of all tensor storages that are reachable from the objects."""
    storages: dict[int, int] = {}
    seen, stack = set(), list(roots)
    skipped = (type, types.ModuleType, types.FunctionType, str, bytes, int, float)
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, skipped):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
            stack += [item.grad] if item.is_leaf else []
        elif isinstance(item, Mapping):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            stack += item
        elif isinstance(item, types.MethodType):
            stack.append(item.__self__)
        stack += vars(item).values() if hasattr(item, "__dict__") else ()
    return sum(storages.values())


def update_costs(
    plain: Plain, tool: Plain, batch: Mapping[str, Tensor]
) -> tuple[list[float], list[int]]:
    """Measure every mask update, without the optimizer step of PAT; and the bytes held after it."""
    times, extra = [], []
    if isinstance(tool, PAT):  # its updates need gradients
        tool.backward(batch), plain.backward(batch)
    for k in range(1, UPDATES + 1):
        taken = seconds(tool.update, k)
        times.append(taken - (seconds(plain.optimizer.step) if isinstance(tool, PAT) else 0.0))
        extra.append(tensor_bytes(tool) - tensor_bytes(plain))
    tool.optimizer.zero_grad(), plain.optimizer.zero_grad()
    return times, extra


def cost(
    contender: type[Plain], make: Callable[[], PreTrainedModel], batch: dict, rounds: int
) -> dict[str, Any]:
    """Measure the updates, then steps at the final sparsity, alternating with plain steps."""
    plain, tool = Plain(make()), contender(make())
    plain.step(batch)
    if not isinstance(tool, PAT):  # PAT's first step is a mask update already
        tool.step(batch)
    updates, extra = update_costs(plain, tool, batch)
    tool.step(batch)
    times: dict[Plain, list[float]] = {plain: [], tool: []}
    alone = []
    for i in range(rounds):
        for each in (plain, tool) if i % 2 else (tool, plain):
            times[each].append(seconds(each.step, batch))
        alone.append(seconds(tool.project))
    size = sum(weight.numel() for weight in tool.in_scope())
    wanted = sum(round(FINAL * weight.numel()) for weight in tool.in_scope())
    return {
        "plain_step": times[plain],
        "step": times[tool],
        "hold_alone": alone if isinstance(tool, KDPrune) else None,
        "updates": updates,
        "bytes_per_weight": [size_held / size for size_held in extra],
        "weights": size,
        "asked": wanted,
        "got": size - sum(int(weight.count_nonzero()) for weight in tool.in_scope()),
    }


def costs(
    shape: Mapping[str, Any], folder: str | None, rounds: int | None
) -> dict[str, dict[str, Any]]:
    """Measure all tools on a model of this shape: name → figures."""
    rows, length = shape["batch"]
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(1000, 20000, (rows, length), generator=generator),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "labels": torch.arange(rows) % 2,
    }
    rounds = rounds or shape["rounds"]
    found = {}
    for contender in CONTENDERS:
        print(f"  {contender.name}", flush=True)
        found[contender.name] = cost(
            contender, lambda: make_model(shape["config"], folder), batch, rounds
        )
        gc.collect()
    return found
