"""Steps: what a pruner hears of a fit under way, from its optimizers and its layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as L
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from kd_prune.pruning.pruner import Pruner, parameters_of

NO_INPUT = (
    nn.RNNBase,
    nn.MultiheadAttention,
    NonDynamicallyQuantizableLinear,  # the output of MultiheadAttention, which never calls it
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
)
"""Layers that do not show, feature for feature, what their weights multiply."""


class Steps:
    """Hears of every step that is really made, and keeps pruned weights at zero after it.

    A scaler that skips a step calls no optimizer, and manual loops step as they like, so the
    optimizers themselves are listened to.

    Attributes:
        heard: Whether any step was made; None: no batch was begun yet.
    """

    def __init__(self) -> None:
        self.heard: bool | None = None
        self._made = False
        self._shown = set[int]()  # by which optimizers the gradients of their next step were
        self._optimizers: list[Optimizer] = []
        self._hooks: list[RemovableHandle] = []

    def listen(self, trainer: L.Trainer, module: nn.Module, pruner: Pruner) -> None:
        """Listen to the trainer's optimizers and, where the criterion looks at inputs, to layers.

        Raises:
            ValueError: A layer does not show the input that its weight multiplies.
        """

        def before(optimizer: Optimizer, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            # Lightning hands over a closure, which shows the gradients when they are there, or has
            # shown them; it tells nobody of steps of `self.optimizers(use_pl_optimizer=False)`.
            if id(optimizer) not in self._shown and not any([*args[1:], *named.values()]):
                self.show(trainer, pruner, optimizer)

        def after(optimizer: Optimizer, *_: Any) -> None:
            pruner.project(optimizer if moving else None)
            self._made = self.heard = True
            self._shown.discard(id(optimizer))

        self.stop()
        self._optimizers = list(trainer.optimizers)
        pruner.watch(trainer.optimizers)
        ours = {id(parameter) for parameter in pruner.parameters.values()}
        moving = [o for o in trainer.optimizers if ours & {id(p) for p in parameters_of(o)}]
        for optimizer in moving or trainer.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(before))
            self._hooks.append(optimizer.register_step_post_hook(after))
        if getattr(pruner.criterion, "observes", None) == "input":
            self._hooks += tap_inputs(module, pruner)

    def begin_batch(self, trainer: L.Trainer, module: nn.Module, pruner: Pruner) -> None:
        """Listen to optimizers that took the place of others."""
        self.heard = bool(self.heard)
        self._shown.clear()  # of steps that a scaler skipped
        if [*map(id, trainer.optimizers)] != [*map(id, self._optimizers)]:
            self.listen(trainer, module, pruner)

    def show(self, trainer: L.Trainer, pruner: Pruner, optimizer: Optimizer) -> None:
        """Show the pruner the gradients of a step that is about to be made."""
        self._shown.add(id(optimizer))
        if not pruner.observes_gradients:
            return
        scaler, scale = getattr(trainer.precision_plugin, "scaler", None), 1.0
        if scaler:
            gradients = [p.grad for p in parameters_of(optimizer) if p.grad is not None]
            if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                return  # the scaler is going to skip this step
            if getattr(optimizer, "_step_supports_amp_scaling", False):  # a fused one unscales
                scale = scaler.get_scale()
        pruner.observe_gradients(optimizer, scale)

    def take(self) -> bool:
        """Whether a step was made since this was last asked."""
        made, self._made = self._made, False
        return made

    def stop(self) -> None:
        """Listen no more."""
        for handle in self._hooks:
            handle.remove()
        self._hooks, self._optimizers = [], []


def tap_inputs(module: nn.Module, pruner: Pruner) -> list[RemovableHandle]:
    """Hooks by which the criterion sees the inputs of every layer in scope, in training.

    Raises:
        ValueError: The model is compiled, or a layer's input is not what its weight multiplies.
    """
    criterion = pruner.criterion
    if any("_orig_mod" in name for name, _ in module.named_modules()):
        raise ValueError(
            f"criterion={criterion}: it looks at layers' inputs, which a compiled model "
            "does not show; fit the model without torch.compile, or take another criterion"
        )
    names = {id(parameter): name for name, parameter in pruner.parameters.items()}

    def look(
        name: str, layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> None:
        if layer.training:
            pruner.observe({name: next(iter((*inputs, *named.values()))).detach()})

    hooks = []
    for layer in module.modules():
        for parameter in layer.parameters(recurse=False):
            name = names.get(id(parameter))
            if name and _shows_no_input(layer):
                raise ValueError(
                    f"criterion={criterion}: it looks at a layer's input, and {name} is "
                    f"not all that a {type(layer).__name__} applies to its own; leave it out "
                    "of the scope, or take another criterion"
                )
            if name:
                look_at = partial(look, name)
                hooks.append(layer.register_forward_pre_hook(look_at, with_kwargs=True))
    return hooks


def _shows_no_input(layer: nn.Module) -> bool:
    """Whether what comes into the layer is not, feature for feature, what its weight multiplies."""
    turned = getattr(layer, "transposed", False) or type(layer).__name__ == "Conv1D"
    return isinstance(layer, NO_INPUT) or turned or getattr(layer, "groups", 1) != 1
