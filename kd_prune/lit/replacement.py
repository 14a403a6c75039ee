"""LayerReplacement: trains fewer layers in the place of a finished model's (BERT-of-Theseus)."""

from __future__ import annotations

import copy
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import nn

from kd_prune.distillation.layer_map import layer_pairs
from kd_prune.errors import ConfigError
from kd_prune.lit.progress import RunLength
from kd_prune.pruning.checks import check_fraction

HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
"""Attributes of a module that hold its forward hooks."""


class LayerReplacement(L.Callback):
    """Runs each layer of the module, the successor, or the layers of a predecessor in its place.

    The predecessor's layers are divided among the successor's, in order; of 12 and 6 each successor
    stands for two. In every training batch a successor layer takes part with probability
    ``p = min(1, initial + (1 - initial) · progress / end)``, drawn for each layer; otherwise the
    predecessor's layers run, frozen, in the mode (training or eval) of the layer that they replace.
    From `end` on, in validation and in the saved model there are successors only. What else is not
    to train (embeddings, head) is frozen by its owner, as with a stage's `freeze`.

    A layer that does not take part has a gradient of zero in that step, so a step in which none
    takes part is made too, and DDP finds every parameter used.

    Source: Xu et al. 2020 (arXiv 2002.02925); ``p = min(1, k t + b)`` with b = `initial` and
    ``k = (1 - b) / (end · steps)``.

    Args:
        initial: Probability at the first step.
        end: Fraction of the run at which the probability is 1.
        predecessor: The finished model; None: the module's `teacher`.
        layers: Name of the list of layers in the predecessor; None: the first `nn.ModuleList` that
            module and predecessor both have under one name, with layers of one class.
        seed: Seed of the draws, which depend on it and on the batch's number alone.

    Raises:
        ConfigError: A fraction is out of range; at the start of a fit: no predecessor, no such
            layers, or fewer of them than the successor has.
    """

    def __init__(
        self,
        *,
        initial: float = 0.3,
        end: float = 0.5,
        predecessor: nn.Module | None = None,
        layers: str | None = None,
        seed: int = 0,
    ) -> None:
        check_fraction("initial", initial, closed=True)
        check_fraction("end", end, closed=True)
        self.initial = initial
        self.end = end
        self.predecessor = predecessor
        self.layers = layers
        self.seed = seed
        self._length = RunLength()
        self._takes_part: list[bool] = []
        self._replaced: list[nn.Module] = []

    def arguments(self) -> dict[str, Any]:
        """Return the settings, from which a stage's fingerprint is made."""
        names = ("initial", "end", "predecessor", "layers", "seed")
        return {name: getattr(self, name) for name in names}

    def probability(self, step: int, total: int) -> float:
        """Return the probability that a successor layer takes part, after `step` of `total` steps.

        >>> [LayerReplacement(initial=0.5, end=0.5).probability(t, 8) for t in (0, 2, 4, 8)]
        [0.5, 0.75, 1.0, 1.0]
        """
        ramp = self.end * total
        return min(1.0, self.initial + (1.0 - self.initial) * (step / ramp if ramp else 1.0))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the predecessor's layers, and let each successor layer choose what runs."""
        predecessor = self.predecessor or getattr(pl_module, "teacher", None)
        theirs, ours = self._find_layers(predecessor, pl_module)
        self._length = RunLength.from_fit(trainer)
        self._takes_part = [True] * len(ours)
        copied = copy.deepcopy(theirs).requires_grad_(False)
        for module in copied.modules():
            module._forward_hooks = OrderedDict()  # of the predecessor's own outputs
        frozen = list(
            trainer.precision_plugin.convert_module(copied).to(pl_module.device).children()
        )
        first = 0
        for i, last in layer_pairs(len(ours), len(theirs)):
            layer = ours[i - 1]
            layer.forward = self._choice(trainer, i - 1, layer, frozen[first:last])
            self._replaced.append(layer)
            first = last

    def check_models(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Refuse models that the callback cannot work on, before anything is trained.

        Raises:
            ConfigError: As at the start of a fit.
        """
        self._find_layers(self.predecessor or teacher, student)

    def _find_layers(
        self, predecessor: nn.Module | None, module: nn.Module
    ) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Return the layers of the predecessor and of the module."""
        if not isinstance(predecessor, nn.Module):
            raise ConfigError("predecessor", None, "no finished model is given", "give one")
        finished = set(predecessor.modules())  # a module may hold its teacher
        for name, theirs in _stacks(predecessor):
            if self.layers not in (None, name):
                continue
            for own_name, ours in _stacks(module):
                if ours in finished:
                    continue
                same_name = own_name == name or own_name.endswith(f".{name}")
                if same_name and type(ours[0]) is type(theirs[0]):
                    if len(ours) > len(theirs):
                        raise ConfigError(
                            "predecessor",
                            expected=f"it has {len(theirs)} layers, the module {len(ours)}",
                            hint="give the module fewer layers",
                        )
                    return theirs, ours
        raise ConfigError(
            "layers",
            self.layers,
            "module and predecessor have no list of layers in common",
            "take a model of the same family, or name the list",
        )

    def _choice(
        self, trainer: L.Trainer, index: int, successor: nn.Module, group: list[nn.Module]
    ) -> Callable[..., Any]:
        """Return a forward of a successor layer that runs the layer or its predecessors."""
        own = successor.forward

        def forward(hidden: Any, *args: Any, **settings: Any) -> Any:
            if self._takes_part[index] or not trainer.training:
                return own(hidden, *args, **settings)
            share_hooks(successor, group[-1])
            outputs = hidden
            for layer in group:
                hidden = outputs[0] if isinstance(outputs, tuple) else outputs
                outputs = layer.train(successor.training)(hidden, *args, **settings)
            unused = [p.flatten()[0] for p in successor.parameters() if p.requires_grad]
            zero = torch.stack(unused).sum() * 0.0 if unused else 0.0
            if isinstance(outputs, tuple):
                return outputs[0] + zero, *outputs[1:]
            return outputs + zero

        return forward

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Draw which successor layers take part in the batch."""
        probability = self.probability(self._length.synchronized_step(trainer), self._length.total)
        random = np.random.default_rng((self.seed, trainer.fit_loop.total_batch_idx + 1))
        draws = random.random(len(self._takes_part))
        self._takes_part[:] = (draws < probability).tolist()
        pl_module.log("replacement/probability", probability, batch_size=1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn where the run was too short for every successor layer to take part at last."""
        step, length = self._length.step(trainer), self._length
        if self.probability(step, length.total) < 1.0 and not trainer.should_stop:
            warnings.warn(
                f"the run ended after {step} of the {length.total} {length.unit} planned, before "
                "all layers took part; set its length (max_steps)",
                stacklevel=2,
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the layers back their own forward."""
        self._restore()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the layers back their own forward."""
        self._restore()

    def _restore(self) -> None:
        for layer in self._replaced:
            vars(layer).pop("forward", None)
        self._replaced, self._takes_part = [], []


def share_hooks(successor: nn.Module, predecessor: nn.Module) -> None:
    """Let the hooks on a successor's inner modules see those of the layer that runs in its place.

    transformers collects attention scores by such hooks, which it adds in the first forward pass.
    The hooks on the layer itself see it in any case.
    """
    inner = dict(predecessor.named_modules())
    for name, module in successor.named_modules():
        if name and name in inner:
            for kind in HOOKS:
                setattr(inner[name], kind, getattr(module, kind))


def _stacks(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield name and list of every stack of layers: an `nn.ModuleList` that runs in order.

    Lists of one length side by side are parts of the same layers (XLM's), which no one of them
    can replace.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    }
    sizes = Counter((name.rpartition(".")[0], len(module)) for name, module in lists.items())
    for name, module in lists.items():
        if sizes[name.rpartition(".")[0], len(module)] == 1:
            yield name, module
