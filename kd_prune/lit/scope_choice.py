"""choose_scope: which parameters of a module a fit prunes."""

from __future__ import annotations

import warnings

import lightning.pytorch as L
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_prune.pruning.chosen_scope import LAST_LAYER, DefaultScope, default_scope, given_scope
from kd_prune.pruning.layer_trace import LayerTrace, trace_layers
from kd_prune.pruning.optimizer_state import optimizer_parameters
from kd_prune.pruning.scope import Scope, named_parameters
from kd_prune.pruning.sharding import count_nonzero


def choose_scope(
    scope: Scope | None,
    model: nn.Module,
    optimizers: list[Optimizer] | None,
    *,
    module: L.LightningModule,
    trainer: L.Trainer,
    keep_only: bool = False,
) -> DefaultScope:
    """Return the parameters of a given scope, or those of the layers of the model that train.

    Args:
        scope: The scope; None: see `default_scope`.
        model: The model to be pruned, which is the module or a part of it.
        optimizers: The optimizers; None: not known yet.
        module: The module.
        trainer: Its trainer.
        keep_only: Whether zeros are kept and no more are made: that suits frozen weights too.

    Raises:
        ConfigError: As `default_scope` and `given_scope`.
    """
    networks = None if optimizers is None else [optimizer_parameters(o) for o in optimizers]
    if scope is not None:
        return given_scope(scope, model, networks, frozen=scope.frozen or keep_only)
    trace = trace_example(module, trainer)
    chosen = default_scope(model, networks, trace)
    if trace is None and LAST_LAYER in chosen.excluded.values():
        return chosen.with_note(
            "Only the last layer was taken for an output head. If the module has several, set its "
            "example_input_array, by which all are found, or give a scope"
        )
    return chosen


def warn_of_zeros_outside_scope(chosen: DefaultScope, model: nn.Module) -> None:
    """Warn of trained tensors outside the chosen scope that were pruned: their zeros will be lost.

    One counts as pruned with a tenth of zeros or more, unless it is all zeros, as new layers are.

    Args:
        chosen: The scope, chosen by default.
        model: The model.
    """
    weights, lost = named_parameters(model), {}
    for name in chosen.excluded:
        share = 1.0 - sum(count_nonzero([weights[name]])) / weights[name].numel()
        if weights[name].requires_grad and 0.1 <= share < 1.0:
            lost[name] = f"{name} ({chosen.excluded[name]}) has {share:.0%}"
    if lost:
        warnings.warn(
            f"zeros outside the scope are not kept: {', '.join(lost.values())}; to keep them, give "
            f"scope=Scope(include=[…]) with {', '.join(map(repr, lost))} in it",
            stacklevel=3,
        )


def trace_example(module: L.LightningModule, trainer: L.Trainer) -> LayerTrace | None:
    """Trace the forward pass of the module's ``example_input_array``; None if it has none.

    The example is Lightning's convention for a forward pass that may be made at any time: the
    summary of a model runs it too. A batch of the loader is not used, because taking one changes
    loaders that keep their place, and which forward pass it belongs to is not known.
    """
    example = getattr(module, "example_input_array", None)
    if example is None:
        return None
    if any(type(parameter.data) is not Tensor for parameter in module.parameters()):
        return LayerTrace(problem="its parameters are sharded")
    try:
        precision = trainer.precision_plugin
        example = precision.convert_input(move_data_to_device(example, module.device))
        with precision.forward_context():
            if isinstance(example, dict):
                return trace_layers(module, **example)
            return trace_layers(
                module, *(example if isinstance(example, tuple | list) else [example])
            )
    except Exception as error:  # an example of a kind that cannot be moved or converted
        return LayerTrace(problem=f"{type(error).__name__}: {error}".splitlines()[0][:120])
