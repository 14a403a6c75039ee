"""Pruning while training, side by side with its peers: behaviour and cost, in one process.

    python benchmarks/peers.py [--model <folder>] [--shape bert minilm] [--write]

Peers: Lightning's ModelPruning, torch.ao.pruning, torchao's PAT. torchao is needed for its own
column only (``pip install torchao==0.18.0``). Times are CPU seconds of one thread, which are those
of the clock on an idle machine and suffer least from other load on a busy one.

Writes benchmarks/results/peers.json; ``--write`` also puts the tables into docs/why.md.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib.metadata
import importlib.util
import io
import itertools
import logging
import statistics
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from common import ROOT, machine, save
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn
from torch.ao.pruning import CubicSL, WeightNormSparsifier
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from kd_prune.hf import models
from kd_prune.lit import SparsityCallback
from kd_prune.pruning import Pruner, Schedule, Scope

FINAL = 0.95
EPOCHS, PER_EPOCH, RAMP_EPOCHS = 8, 8, 6  # the small model's run
RAMP = RAMP_EPOCHS * PER_EPOCH
HALF, LATE = EPOCHS // 2, EPOCHS - 1  # epochs after which it is interrupted: on the ramp, after it
UPDATES = 5  # mask updates that are timed, on one cubic ramp
PAGE = ROOT / "docs" / "why.md"
MARKS = "<!-- tables: begin -->", "<!-- tables: end -->"
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None


class Small(nn.Module):
    """Embedding, three normed layers that are to be pruned, a head."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(32, 64), (64, 64), (64, 32)]
        self.embedding = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(size[1]) for size in sizes)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        hidden = self.embedding(ids).mean(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = norm(F.gelu(layer(hidden)))
        return self.head(hidden)


class Distil(L.LightningModule):
    """A student that learns from labels and a frozen teacher."""

    def __init__(self, make_optimizer: Callable[[Small], Optimizer]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher = Small(), Small().requires_grad_(False).eval()
        self.make_optimizer = make_optimizer

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        """Cross entropy and squared error of the logits."""
        ids, labels = batch
        logits = self.student(ids)
        return F.cross_entropy(logits, labels) + F.mse_loss(logits, self.teacher(ids))

    def configure_optimizers(self) -> Optimizer:
        """What the tool needs; else AdamW."""
        return self.make_optimizer(self.student)


def adamw(student: nn.Module) -> Optimizer:
    """AdamW of all parameters."""
    return AdamW(student.parameters(), lr=1e-3)


def prune_optimizer(
    model: nn.Module, weights: Sequence[Tensor], lr: float, *, end: int, **group: Any
) -> Optimizer:
    """PAT over AdamW: single weights, ranked within each tensor."""
    from torchao.prototype.pat import PruneOptimizer

    ids = {id(weight) for weight in weights}
    rest = [p for p in model.parameters() if id(p) not in ids]
    pruned = {
        "params": list(weights),
        "group_type": "KElementGrouper",
        "k": 1,
        "prox_type": "MinSparsityConstraint",
        "min_sparsity": FINAL,
        **group,
    }
    return PruneOptimizer(AdamW([pruned, {"params": rest}], lr=lr), healing_start_step=end)


def pat(student: Small) -> Optimizer:
    """PAT on its own cubic ramp, which reaches the target one step before `end`."""
    weights = [layer.weight for layer in student.layers]
    return prune_optimizer(student, weights, 1e-3, end=RAMP + 1, min_sparsity_schedule=True)


def cubic(epoch: int) -> float:
    """Sparsity wanted after this epoch, the first being 0."""
    return Schedule(final=FINAL)(min(1.0, (epoch + 1) / RAMP_EPOCHS))


def of_what_remains(epoch: int) -> float:
    """The share of the weights that are left which brings the sparsity to `cubic`."""
    return 1 - (1 - cubic(epoch)) / (1 - cubic(epoch - 1))


def ours(module: Distil) -> L.Callback:
    """This project's callback."""
    scope = Scope(include=["student.layers.*.weight"])
    return SparsityCallback(
        final=FINAL, scope=scope, begin=0.0, end=RAMP_EPOCHS / EPOCHS, updates=RAMP
    )


def lightning_cubic(module: Distil, amount: Callable[[int], float] = cubic) -> L.Callback:
    """ModelPruning of the student's layers, without rewinding."""
    layers = [(layer, "weight") for layer in module.student.layers]
    return ModelPruning(
        "l1_unstructured",
        parameters_to_prune=layers,
        amount=amount,
        use_lottery_ticket_hypothesis=False,
    )


class Sparsify(L.Callback):
    """torch.ao.pruning in Lightning: the parametrizations early, a step of both after each batch.

    With `keep` the states of sparsifier and scheduler travel in the checkpoint, and the masks that
    the state dict leaves out are not missed when it is loaded.
    """

    def __init__(self, keep: bool) -> None:
        self.keep = keep

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before a checkpoint is loaded, whose keys it must fit."""
        pl_module.strict_loading = not self.keep
        names = [f"student.layers.{i}.weight" for i in range(len(pl_module.student.layers))]
        self.sparsifier, self.scheduler = sparsifier(pl_module, names, RAMP)

    def on_train_batch_end(self, *_: Any) -> None:
        """Raise the sparsity, find the masks."""
        self.scheduler.step()
        self.sparsifier.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        if not self.keep:
            return {}
        return {
            "sparsifier": self.sparsifier.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Both states."""
        if state_dict:
            self.sparsifier.load_state_dict(state_dict["sparsifier"])
            self.scheduler.load_state_dict(state_dict["scheduler"])


def sparsifier(
    model: nn.Module, names: Sequence[str], steps: int
) -> tuple[WeightNormSparsifier, CubicSL]:
    """Single weights (blocks of 1x1), cubic over so many steps."""
    found = WeightNormSparsifier(sparsity_level=FINAL, sparse_block_shape=(1, 1))
    found.prepare(model, [{"tensor_fqn": name} for name in names])
    scheduler = CubicSL(found, total_t=steps, delta_t=1)
    found.step()
    return found, scheduler


@dataclass(frozen=True)
class Tool:
    """A column of the behaviour table."""

    name: str
    callback: Callable[[Distil], L.Callback] | None = None
    make_optimizer: Callable[[Small], Optimizer] = adamw


PLAIN = Tool("none")
TOOLS = [
    Tool("kd_prune", ours),
    Tool("ModelPruning, cubic amount", lightning_cubic),
    Tool(
        "ModelPruning, cubic of what remains",
        lambda module: lightning_cubic(module, of_what_remains),
    ),
    Tool("ModelPruning, defaults", lambda module: ModelPruning("l1_unstructured", amount=FINAL)),
    Tool("torch.ao", lambda module: Sparsify(keep=False)),
    Tool("torch.ao, kept by hand", lambda module: Sparsify(keep=True)),
    *([Tool("torchao PAT", make_optimizer=pat)] if HAS_TORCHAO else []),
]


def running(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights and biases that layers compute with, however they are held."""
    return {
        f"{name}.{kind}": value.detach().clone()
        for name, layer in module.named_modules()
        for kind in ("weight", "bias")
        if isinstance(value := getattr(layer, kind, None), Tensor)
    }


def zeros(tensors: Mapping[str, Tensor], *words: str) -> float:
    """Share of zeros in the tensors whose name holds one of the words."""
    chosen = [t for name, t in tensors.items() if any(word in name for word in words)]
    return 1 - sum(int(t.count_nonzero()) for t in chosen) / sum(t.numel() for t in chosen)


def in_scope(module: Distil) -> dict[str, Tensor]:
    """The running weights that were asked to be pruned."""
    return {f"{i}": layer.weight.detach() for i, layer in enumerate(module.student.layers)}


class Recorder(L.Callback):
    """Sparsity after every step, and checkpoints after some epochs; to be put last."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.sparsity: dict[int, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Distil, *_: Any) -> None:
        """Count."""
        self.sparsity[trainer.global_step] = zeros(in_scope(pl_module), "")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Distil) -> None:
        """Save."""
        epoch = trainer.current_epoch + 1
        if self.folder and epoch in (HALF, LATE):
            trainer.save_checkpoint(self.folder / f"{epoch}.ckpt")


def loader() -> DataLoader:
    """The small model's data, always in the same order."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (8 * PER_EPOCH, 12), generator=generator)
    return DataLoader(TensorDataset(ids, (ids.sum(1) > 294).long()), batch_size=8)


def fit(
    tool: Tool, folder: Path | None = None, resume: Path | None = None
) -> tuple[Distil, dict[int, float]]:
    """Train from new objects, from the beginning or a checkpoint."""
    module = Distil(tool.make_optimizer)
    recorder = Recorder(folder)
    callbacks = [tool.callback(module)] if tool.callback else []
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, recorder],
        )
        trainer.fit(module, loader(), ckpt_path=resume, weights_only=False)
    return module, recorder.sparsity


def resumed(tool: Tool, checkpoint: Path, whole: Distil, course: Mapping[int, float]) -> dict:
    """What becomes of a run that goes on from the checkpoint, next to the one that went through."""
    try:
        module, again = fit(tool, resume=checkpoint)
    except Exception as error:  # any: that it fails is the finding
        return {"error": type(error).__name__}
    first = min(again)
    ended, straight = running(module), running(whole)
    return {
        "first": again[first],
        "first_uninterrupted": course[first],
        "end": zeros(in_scope(module), ""),
        "end_uninterrupted": zeros(in_scope(whole), ""),
        "bitwise": all(torch.equal(ended[name], straight[name]) for name in straight),
    }


def pat_in_a_loop() -> dict[str, float]:
    """PAT interrupted after the ramp, where gradients are there before the optimizer's step.

    Lightning computes them within it, in a closure.
    """

    def train(module: Distil, optimizer: Optimizer, epochs: int) -> list[float]:
        course = []
        for batch in list(loader()) * epochs:
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
            course.append(zeros(in_scope(module), ""))
        return course

    module = Distil(pat)
    optimizer = module.configure_optimizers()
    train(module, optimizer, LATE)
    again = Distil(pat)
    fresh = again.configure_optimizers()
    again.load_state_dict(module.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    course = train(again, fresh, EPOCHS - LATE)
    return {"first": course[0], "end": course[-1]}


def safe(checkpoint: Path) -> bool:
    """Whether it loads without running code from the file."""
    try:
        torch.load(checkpoint, weights_only=True)
    except Exception:  # any: torch raises several kinds
        return False
    return True


def behaviour(tool: Tool, keys: set[str], untouched: Mapping[str, Tensor]) -> dict[str, Any]:
    """Run the tool on the small model; find out what it did."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module, course = fit(tool, folder)
        half, late = folder / f"{HALF}.ckpt", folder / f"{LATE}.ckpt"
        found = set(torch.load(half, weights_only=False)["state_dict"])
        returns = {
            "half": resumed(tool, half, module, course),
            "late": resumed(tool, late, module, course),
        }
        loads = safe(half)
    weights, everything = in_scope(module), running(module)
    size = sum(weight.numel() for weight in weights.values())
    gone = size - sum(int(weight.count_nonzero()) for weight in weights.values())
    steps = sorted(course)
    moved = [b for a, b in itertools.pairwise(steps) if course[b] > course[a] + 1e-9]
    teacher = {name: t for name, t in everything.items() if name.startswith("teacher.")}
    student = {name: t for name, t in everything.items() if name.startswith("student.")}
    return {
        "weights": size,
        "asked": sum(round(FINAL * weight.numel()) for weight in weights.values()),
        "got": gone,
        "teacher_changed": any(not torch.equal(t, untouched[n]) for n, t in teacher.items()),
        "teacher_zeros": zeros(teacher, ".weight"),
        "bias_zeros": zeros(student, ".bias"),
        "embedding_zeros": zeros(student, "embedding"),
        "resumed": returns,
        "keys": len(keys),
        "keys_missing": len(keys - found),
        "keys_unexpected": len(found - keys),
        "rises": len(moved),
        "rises_within_epochs": sum((step - 1) % PER_EPOCH != 0 for step in moved),
        "weights_only": loads,
    }


def behaviours() -> dict[str, dict[str, Any]]:
    """Tool → what it did."""
    module, _ = fit(PLAIN)
    keys, untouched = set(module.state_dict()), running(module)
    found = {tool.name: behaviour(tool, keys, untouched) for tool in TOOLS}
    if HAS_TORCHAO:
        found["torchao PAT"]["resumed"]["late"]["loop"] = pat_in_a_loop()
    return found


class Plain:
    """Fine-tuning with AdamW: what the others are compared with."""

    name = "plain"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.train()
        self.weights = models.encoder_scope(model).select(model)
        self.names = list(self.weights)
        self.prepare()
        self.optimizer = self.make_optimizer()

    def prepare(self) -> None:
        """Before the optimizer is made."""

    def make_optimizer(self) -> Optimizer:
        """AdamW of all parameters."""
        return AdamW(self.model.parameters(), lr=5e-5)

    def backward(self, batch: Mapping[str, Tensor]) -> None:
        """Forward and backward."""
        self.model(**batch).loss.backward()

    def hold(self) -> None:
        """Keep pruned weights at zero after an optimizer step."""

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """A whole training step."""
        self.backward(batch)
        self.optimizer.step()
        self.hold()
        self.optimizer.zero_grad()

    def update(self, k: int) -> None:
        """The k-th mask update of `UPDATES`."""

    def in_scope(self) -> Iterator[Tensor]:
        """The running weights in scope."""
        for name in self.names:
            yield self.model.get_submodule(name.removesuffix(".weight")).weight


class Ours(Plain):
    """The Pruner."""

    name = "kd_prune"

    def prepare(self) -> None:
        """Make the masks."""
        self.pruner = Pruner(
            self.weights, Schedule(final=FINAL), total_steps=UPDATES, updates=UPDATES
        )

    def hold(self) -> None:
        """Project."""
        self.pruner.project()

    def update(self, k: int) -> None:
        """Update and project."""
        self.pruner.update(k)
        self.pruner.project()


class Lightning(Plain):
    """ModelPruning without a Trainer and without rewinding, amounts of what remains."""

    name = "ModelPruning"

    def prepare(self) -> None:
        """Let it find its modules."""
        owners = [self.model.get_submodule(name.removesuffix(".weight")) for name in self.names]
        self.callback = ModelPruning(
            "l1_unstructured",
            parameters_to_prune=[(owner, "weight") for owner in owners],
            use_lottery_ticket_hypothesis=False,
        )
        self.callback.setup(None, self.model, "fit")

    def update(self, k: int) -> None:
        """Prune the share of what remains that leads to the ramp's next sparsity."""
        before, after = (Schedule(final=FINAL)(j / UPDATES) for j in (k - 1, k))
        self.callback.apply_pruning(1 - (1 - after) / (1 - before))


class TorchAO(Plain):
    """WeightNormSparsifier and CubicSL."""

    name = "torch.ao"

    def prepare(self) -> None:
        """Put the parametrizations in."""
        self.sparsifier, self.scheduler = sparsifier(self.model, self.names, UPDATES)

    def update(self, k: int) -> None:
        """A step of both."""
        self.scheduler.step()
        self.sparsifier.step()


class PAT(Plain):
    """PruneOptimizer: an update is a step of it on the ramp, then it heals."""

    name = "torchao PAT"

    def make_optimizer(self) -> Optimizer:
        """The same AdamW, wrapped."""
        return prune_optimizer(self.model, list(self.weights.values()), 5e-5, end=UPDATES)

    def update(self, k: int) -> None:
        """An optimizer step (AdamW's own part is taken off by who measures)."""
        self.optimizer.param_groups[0]["min_sparsity"] = Schedule(final=FINAL)(k / UPDATES)
        self.optimizer.step()


CONTENDERS = [Ours, Lightning, TorchAO, *([PAT] if HAS_TORCHAO else [])]
SHAPES = {
    "bert": {
        "title": "BERT-base: 12 layers of 768 and 3072, batch 8 x 32",
        "config": {},
        "batch": (8, 32),
        "rounds": 7,
    },
    "minilm": {
        "title": "MiniLM: 6 layers of 384 and 1536, batch 16 x 56",
        "config": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
        "batch": (16, 56),
        "rounds": 15,
    },
}


def make_model(shape: str, folder: str | None) -> PreTrainedModel:
    """The model from the folder, or one of that shape with random weights."""
    if folder and shape == "minilm":
        return AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, dtype=torch.float32
        )
    config = BertConfig(num_labels=2, **SHAPES[shape]["config"])
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config)


def seconds(action: Callable[..., object], *arguments: Any) -> float:
    """CPU time of one call."""
    start = time.process_time()
    action(*arguments)
    return time.process_time() - start


def held(*roots: object) -> int:
    """Bytes of all storages of tensors that can be reached from the objects."""
    storages: dict[int, int] = {}
    seen, stack = set(), list(roots)
    passed_over = (type, types.ModuleType, types.FunctionType, str, bytes, int, float)
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, passed_over):
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
    """Seconds of every mask update, less an optimizer step that it may hold; bytes after it."""
    times, extra = [], []
    if isinstance(tool, PAT):  # steps with the gradients of one batch
        tool.backward(batch), plain.backward(batch)
    for k in range(1, UPDATES + 1):
        taken = seconds(tool.update, k)
        times.append(taken - (seconds(plain.optimizer.step) if isinstance(tool, PAT) else 0.0))
        extra.append(held(tool) - held(plain))
    tool.optimizer.zero_grad(), plain.optimizer.zero_grad()
    return times, extra


def cost(
    contender: type[Plain], make: Callable[[], PreTrainedModel], batch: dict, rounds: int
) -> dict[str, Any]:
    """Updates first, then steps at the final sparsity in turn with plain ones."""
    plain, tool = Plain(make()), contender(make())
    plain.step(batch)
    if not isinstance(tool, PAT):  # whose first step is on the ramp already
        tool.step(batch)
    updates, extra = update_costs(plain, tool, batch)
    tool.step(batch)
    times: dict[Plain, list[float]] = {plain: [], tool: []}
    alone = []
    for i in range(rounds):
        for each in (plain, tool) if i % 2 else (tool, plain):
            times[each].append(seconds(each.step, batch))
        alone.append(seconds(tool.hold))
    size = sum(weight.numel() for weight in tool.in_scope())
    wanted = sum(round(FINAL * weight.numel()) for weight in tool.in_scope())
    return {
        "plain_step": times[plain],
        "step": times[tool],
        "hold_alone": alone if isinstance(tool, Ours) else None,
        "updates": updates,
        "bytes_per_weight": [size_held / size for size_held in extra],
        "weights": size,
        "asked": wanted,
        "got": size - sum(int(weight.count_nonzero()) for weight in tool.in_scope()),
    }


def costs(shape: str, folder: str | None, rounds: int | None) -> dict[str, dict[str, Any]]:
    """Tool → what it costs on a model of this shape."""
    rows, length = SHAPES[shape]["batch"]
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(1000, 20000, (rows, length), generator=generator),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "labels": torch.arange(rows) % 2,
    }
    rounds = rounds or SHAPES[shape]["rounds"]
    found = {}
    for contender in CONTENDERS:
        print(f"{shape}: {contender.name}", flush=True)
        found[contender.name] = cost(contender, lambda: make_model(shape, folder), batch, rounds)
        gc.collect()
    return found


def percent(value: float, digits: int = 1) -> str:
    """0.95 → 95.0 %; what is less than all is not shown as all."""
    if 1 - 10.0 ** -(digits + 2) / 2 < value < 1:
        return f"> {100 - 10.0**-digits:.{digits}f} %"
    return f"{100 * value:.{digits}f} %"


def off(found: Mapping[str, Any]) -> str:
    """By how many weights the count is wrong."""
    wrong = found["got"] - found["asked"]
    return f"{percent(found['got'] / found['weights'], 2)} ({f'{wrong:+,}' if wrong else 'exact'})"


def after_resume(found: Mapping[str, Any]) -> str:
    """First step and end of a resumed run."""
    if "error" in found:
        return f"raises {found['error']}"
    first, straight = percent(found["first"]), percent(found["first_uninterrupted"])
    text = f"{first} (uninterrupted {straight}), at the end {percent(found['end'])}"
    if loop := found.get("loop"):
        text += f"; in a loop without Lightning {percent(loop['first'])}, {percent(loop['end'])}"
    return text


def equality(found: Mapping[str, Any]) -> str:
    """Of both resumed runs."""
    empty = " (all zero)" if found["got"] == found["weights"] else ""
    return ", ".join(
        f"{when}: {f'yes{empty}' if found['resumed'][key].get('bitwise') else 'no'}"
        for key, when in (("half", "half"), ("late", "after the ramp"))
    )


def touched(found: Mapping[str, Any]) -> str:
    """Zeros where none were asked for."""
    shares = {"biases": found["bias_zeros"], "embeddings": found["embedding_zeros"]}
    hit = [f"{percent(share)} of {what} zero" for what, share in shares.items() if share > 0]
    return ", ".join(hit) or "no"


def keys(found: Mapping[str, Any]) -> str:
    """Compared with the plain module's."""
    if not found["keys_missing"] and not found["keys_unexpected"]:
        return "same"
    return f"{found['keys_missing']} missing, {found['keys_unexpected']} unexpected"


BEHAVIOUR_ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Asked for 95 %, counted at the end": off,
    "Sparsity rises per": lambda f: (
        f"{'step' if f['rises_within_epochs'] else 'epoch'}; risen {f['rises']}x"
    ),
    "Frozen teacher changed": lambda f: (
        f"yes, {percent(f['teacher_zeros'])} of weights zero" if f["teacher_changed"] else "no"
    ),
    "Biases, embeddings pruned": touched,
    "Resumed at half of the run": lambda f: after_resume(f["resumed"]["half"]),
    "Resumed after the ramp": lambda f: after_resume(f["resumed"]["late"]),
    "Resumed equals uninterrupted, bit by bit": equality,
    "State-dict keys of a checkpoint": keys,
    "Loads with `weights_only=True`": lambda f: "yes" if f["weights_only"] else "no",
}


def ratios(found: Mapping[str, Any]) -> list[float]:
    """What a step takes beyond the plain one next to it, as a share of that."""
    return [b / a - 1 for a, b in zip(found["plain_step"], found["step"], strict=True)]


def added(found: Mapping[str, Any]) -> float:
    """Share of a plain step that is added where masks stay."""
    if found["hold_alone"]:  # a call of its own, so measured on its own
        return statistics.median(
            a / b for a, b in zip(found["hold_alone"], found["plain_step"], strict=True)
        )
    return statistics.median(ratios(found))


def whole_steps(found: Mapping[str, Any]) -> str:
    """Median and middle half of the differences."""
    low, middle, high = statistics.quantiles(ratios(found), n=4)
    return f"{100 * middle:+.1f} % ({100 * low:+.1f} … {100 * high:+.1f})"


def update_cost(found: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Median seconds, and ratio to ours update by update."""
    ratio = statistics.median(a / b for a, b in zip(found["updates"], base["updates"], strict=True))
    return f"{statistics.median(found['updates']):.3g} s ({ratio:.1f}x)"


def in_all(name: str, found: Mapping[str, Any], updates: int = 100, steps: int = 10_000) -> float:
    """Share added over a ramp; PAT's masks hold only on steps that update them."""
    per_step = statistics.median(found["updates"]) / statistics.median(found["plain_step"])
    return per_step if name == PAT.name else added(found) + per_step * updates / steps


def cost_rows(found: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Row → cells."""
    base = found[Ours.name]
    alone = ["–" if not f["hold_alone"] else f"{100 * added(f):.1f} %" for f in found.values()]
    return {
        "Step with masks fixed, beyond a plain step": [whole_steps(f) for f in found.values()],
        "The same, zeroing timed alone": alone,
        "Mask update, median of five (ratio to kd_prune)": [
            update_cost(f, base) for f in found.values()
        ],
        "Added over a ramp of 10,000 steps and 100 updates": [
            f"{100 * in_all(name, f):.1f} %" for name, f in found.items()
        ],
        "Held between steps after one update, after five; bytes per weight": [
            f"{f['bytes_per_weight'][0]:.2f}, {f['bytes_per_weight'][-1]:.2f}"
            for f in found.values()
        ],
        "Asked for 95 %, counted": [off(f) for f in found.values()],
    }


def table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Markdown."""
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *cells] for name, cells in rows.items()]
    return [f"| {' | '.join(line)} |" for line in lines]


def markdown(result: Mapping[str, Any]) -> str:
    """All tables."""
    did = result["behaviour"]
    rows = {row: [show(f) for f in did.values()] for row, show in BEHAVIOUR_ROWS.items()}
    lines = ["### Behaviour", "", *table(list(did), rows)]
    for shape, found in result["cost"].items():
        step = statistics.median(s for f in found.values() for s in f["plain_step"])
        title = f"{SHAPES[shape]['title']}; plain step {step:.2f} s"
        lines += ["", f"### Cost, {title}", "", *table(list(found), cost_rows(found))]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"{versions}. {result['machine']['cpu']}, one thread, CPU seconds."]
    return "\n".join(lines)


def rewrite(text: str) -> None:
    """Put the tables between the page's marks."""
    before, rest = PAGE.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


def versions() -> dict[str, str]:
    """Of the packages compared."""
    names = ["torch", "lightning", "transformers", *(["torchao"] if HAS_TORCHAO else [])]
    return {name: importlib.metadata.version(name) for name in names}


def main() -> None:
    """Measure, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a model for shape minilm; else random weights")
    parser.add_argument("--shape", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument(
        "--rounds", type=int, help="steps timed of each; else 7 for bert, 15 for minilm"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/why.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    result = {"versions": versions(), "machine": machine(), "behaviour": behaviours(), "cost": {}}
    for shape in arguments.shape:
        result["cost"][shape] = costs(shape, arguments.model, arguments.rounds)
    save(result, "peers")
    text = markdown(result)
    print(text)
    if not HAS_TORCHAO:
        print("\ntorchao PAT is missing: pip install torchao==0.18.0")
    if arguments.write:
        rewrite(text)


if __name__ == "__main__":
    main()
