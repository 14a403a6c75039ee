"""OptimizerHooks: pass a pruner every optimizer step, its gradients and the layers' inputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning.pytorch as L
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer

from kd_prune.errors import ConfigError
from kd_prune.pruning.layers import is_conv1d, layer_weights
from kd_prune.pruning.optimizer_state import optimizer_parameters
from kd_prune.pruning.pruner import Pruner
from kd_prune.pruning.step_hooks import Handle, hook_steps

NO_INPUT = (
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    NonDynamicallyQuantizableLinear,  # the output of MultiheadAttention, which never calls it
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
)
"""Layers whose input features do not correspond one by one to columns of their weight."""


class OptimizerHooks:
    """Hooks on optimizers that record real steps and zero pruned weights after each of them.

    A gradient scaler that skips a step calls no optimizer, and manual loops step as they like, so
    the hooks are on the optimizers themselves.

    Attributes:
        stepped: Whether any optimizer made a step; None before the first batch.
    """

    def __init__(self) -> None:
        self.stepped: bool | None = None
        self._step_pending = False
        self._observed = set[int]()  # optimizers whose gradients for the next step were observed
        self._optimizers: list[Optimizer] = []
        self._handles: list[Handle] = []

    def attach(self, trainer: L.Trainer, module: nn.Module, pruner: Pruner) -> None:
        """Hook the trainer's optimizers and, where the criterion observes inputs, the layers.

        Raises:
            ConfigError: The criterion observes inputs, and a layer's input does not correspond to
                its weight.
        """

        def before_step(
            optimizer: Optimizer, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> None:
            # Lightning passes a closure that computes the gradients and then calls
            # `on_before_optimizer_step`. It calls no hook for steps of
            # `self.optimizers(use_pl_optimizer=False)`: those have no closure.
            if id(optimizer) not in self._observed and not any([*args[1:], *kwargs.values()]):
                self.observe_gradients(trainer, pruner, optimizer)

        def after_step(optimizer: Optimizer) -> None:
            pruner.project(optimizer if moving else None)
            self._step_pending = self.stepped = True
            self._observed.discard(id(optimizer))

        self.detach()
        self._optimizers = list(trainer.optimizers)
        pruner.track_optimizers(trainer.optimizers)
        in_scope = {id(parameter) for parameter in pruner.parameters.values()}
        moving = [
            optimizer
            for optimizer in trainer.optimizers
            if in_scope & {id(p) for p in optimizer_parameters(optimizer)}
        ]
        for optimizer in moving or trainer.optimizers:
            # The optimizer as Lightning knows it, whatever it wraps.
            self._handles += hook_steps(
                optimizer,
                before=partial(before_step, optimizer),
                after=partial(after_step, optimizer),
                after_wrapper=partial(pruner.project, optimizer if moving else None),
            )
        if getattr(pruner.criterion, "observes", None) == "input":
            self._handles += observe_inputs(trainer, module, pruner)

    def begin_batch(self, trainer: L.Trainer, module: nn.Module, pruner: Pruner) -> None:
        """Hook optimizers that replaced earlier ones."""
        self.stepped = bool(self.stepped)
        self._observed.clear()  # left by a step that a scaler skipped
        if [*map(id, trainer.optimizers)] != [*map(id, self._optimizers)]:
            self.attach(trainer, module, pruner)

    def observe_gradients(self, trainer: L.Trainer, pruner: Pruner, optimizer: Optimizer) -> None:
        """Pass the pruner the gradients of the step that `optimizer` is about to make."""
        self._observed.add(id(optimizer))
        if not pruner.observes_gradients:
            return
        scaler, scale = getattr(trainer.precision_plugin, "scaler", None), 1.0
        if scaler:
            gradients = [p.grad for p in optimizer_parameters(optimizer) if p.grad is not None]
            if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                return  # the scaler is going to skip this step
            if getattr(optimizer, "_step_supports_amp_scaling", False):  # a fused one unscales
                scale = scaler.get_scale()
        pruner.observe_gradients(optimizer, scale)

    def consume_step(self) -> bool:
        """Return whether a step was made since the last call."""
        pending, self._step_pending = self._step_pending, False
        return pending

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizers = [], []


def observe_inputs(trainer: L.Trainer, module: nn.Module, pruner: Pruner) -> list[Handle]:
    """Hook every layer in scope: the criterion observes its inputs during training.

    Raises:
        ConfigError: As `observed_layers`.
    """

    def observe(
        name: str, layer: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Tensor]
    ) -> None:
        if trainer.training:  # whatever the layer's own mode: models are often loaded in eval mode
            pruner.observe({name: next(iter((*inputs, *kwargs.values()))).detach()})

    return [
        layer.register_forward_pre_hook(partial(observe, name), with_kwargs=True)
        for layer, name in observed_layers(module, pruner.parameters, pruner.criterion)
    ]


def observed_layers(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], criterion: Any
) -> list[tuple[nn.Module, str]]:
    """Find the layers whose inputs a criterion observes, each with its weight's name.

    Raises:
        ConfigError: The model is compiled, or a layer's input does not correspond to its weight.
    """
    if any("_orig_mod" in name for name, _ in module.named_modules()):
        raise ConfigError(
            "criterion",
            criterion,
            "it observes layers' inputs, which a compiled model does not give",
            "fit the model without torch.compile, or take another criterion",
        )
    names = {id(parameter): name for name, parameter in parameters.items()}
    weights = layer_weights(module)
    observed: list[tuple[nn.Module, str]] = []
    for layer in module.modules():
        for parameter in _own_parameters(layer):
            name = names.get(id(parameter))
            experts = id(parameter) in weights and weights[id(parameter)].experts
            if name and (experts or _input_differs_from_columns(layer)):
                raise ConfigError(
                    "criterion",
                    criterion,
                    f"it observes a layer's input, and the input of {name}'s "
                    f"{type(layer).__name__} does not correspond to the weight's columns",
                    "leave it out of the scope, or take another criterion",
                )
            if name:
                observed.append((layer, name))
    return observed


def _own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a layer computes with, those of parametrized weights included."""
    if isinstance(layer, ParametrizationList):  # its parameters are those of the layer around it
        return []
    parametrized = getattr(layer, "parametrizations", {}).values()
    own = list(layer.parameters(recurse=False))
    return own + [p for weight in parametrized for p in weight.parameters(recurse=False)]


def _input_differs_from_columns(layer: nn.Module) -> bool:
    """Return whether the layer's input features do not correspond to its weight's columns."""
    transposed = getattr(layer, "transposed", False) or is_conv1d(layer)
    return isinstance(layer, NO_INPUT) or transposed or getattr(layer, "groups", 1) != 1
