"""LayerTrace: which layer takes the output of which other, found by one forward pass."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd_prune.pruning.layers import layer_weights
from kd_prune.pruning.unchanged import unchanged


@dataclass(frozen=True, kw_only=True)
class LayerTrace:
    """The layers that a forward pass used, and whose output each of them takes.

    Attributes:
        used: ``id(layer)`` of the layers whose weights met data.
        takes: ``id(layer)`` → ids of the layers whose output it takes, directly or not.
        problem: Why nothing is known; empty if the forward pass succeeded.
    """

    used: frozenset[int] = frozenset()
    takes: dict[int, frozenset[int]] = field(default_factory=dict)
    problem: str = ""

    def outputs(self, layers: Collection[int]) -> set[int]:
        """Return those of `layers` (ids) that were used and whose output none of them takes."""
        taken = frozenset[int]().union(*(self.takes.get(layer, ()) for layer in layers))
        return set(layers) & self.used - taken


def trace_layers(model: nn.Module, *inputs: Any, **keywords: Any) -> LayerTrace:
    """Call ``model(*inputs, **keywords)`` once and note which layer takes whose output.

    The call is made in evaluation mode, without gradients and without compiled code. The model and
    the random generators are left as they were. If the call fails, `LayerTrace.problem` says how.

    Every tensor is labelled with the layers that it depends on. An operation that combines the
    weight of a layer with other tensors shows that this layer takes what they depend on. Labels
    belong to a tensor's memory, so that views and changes in place keep them.

    >>> class TwoHeads(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()  # type: ignore[no-untyped-call]
    ...         self.actor, self.critic, self.body = (nn.Linear(2, 2) for _ in range(3))
    ...
    ...     def forward(self, x):
    ...         return self.actor(self.body(x)), self.critic(self.body(x))
    >>> model = TwoHeads()
    >>> outputs = trace_layers(model, torch.ones(1, 2)).outputs([id(m) for m in model.children()])
    >>> [name for name, layer in model.named_children() if id(layer) in outputs]
    ['actor', 'critic']
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        with unchanged(model), torch.no_grad(), _without_compiling():
            model.eval()
            # The fast path of a Transformer layer is one operation with the weights of all layers.
            torch.backends.mha.set_fastpath_enabled(False)
            labels = _Labels(model)
            hooks = [
                module.register_forward_hook(labels.after_module, with_kwargs=True)
                for module in model.modules()
            ]
            try:
                with labels:
                    model(*inputs, **keywords)
            finally:
                for hook in hooks:
                    hook.remove()
    except Exception as error:  # a foreign forward pass may raise anything
        return LayerTrace(problem=f"{type(error).__name__}: {error}".splitlines()[0][:120])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return labels.trace()


def _without_compiling() -> AbstractContextManager[Any]:
    # Importing the compiler takes seconds, and nothing is compiled where nobody has imported it.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _Labels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Labels of all tensors: sets of layers, as bits of an integer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        weights = layer_weights(model)
        self._layers = list({id(weight.layer): weight.layer for weight in weights.values()})
        self._used = 0
        self._taken = [0] * len(self._layers)
        # Memory → its layers, and whether only parameters and buffers went into it. A weak
        # reference keeps the address from being used again while the entry exists.
        self._known: dict[int, tuple[StorageWeakRef, int, bool]] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            weight = weights.get(id(tensor))
            bit = 1 << self._layers.index(id(weight.layer)) if weight else 0
            self._add(tensor, bit, is_weight=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute an operation, then label its results."""
        result = func(*args, **(kwargs or {}))
        inputs = [self._label(tensor) for tensor in _tensors((args, kwargs))]
        everything = 0
        for layers, _ in inputs:
            everything |= layers
        only_weights = bool(inputs) and all(is_weight for _, is_weight in inputs)
        for i, (layers, is_weight) in enumerate(inputs):
            if is_weight and layers:
                others = 0
                for j, (other, _) in enumerate(inputs):
                    others |= other if j != i else 0
                self._used |= 0 if only_weights else layers
                for bit in _bits(layers):
                    self._taken[bit] |= others & ~layers
        for tensor in _tensors(result):
            self._add(tensor, everything, is_weight=only_weights)
        return result

    def after_module(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Label results that depend on nothing seen: kernels of other libraries are not seen."""
        inputs = 0
        for tensor in _tensors((args, kwargs)):
            inputs |= self._label(tensor)[0]
        for tensor in _tensors(result):
            if not self._label(tensor)[0]:
                self._add(tensor, inputs, is_weight=False)

    def trace(self) -> LayerTrace:
        """Return what was found."""
        return LayerTrace(
            used=frozenset(self._layers[bit] for bit in _bits(self._used)),
            takes={
                layer: frozenset(self._layers[bit] for bit in _bits(taken))
                for layer, taken in zip(self._layers, self._taken, strict=True)
            },
        )

    def _label(self, tensor: Tensor) -> tuple[int, bool]:
        known = self._known.get(tensor.untyped_storage()._cdata)
        return (0, False) if known is None else known[1:]

    def _add(self, tensor: Tensor, layers: int, *, is_weight: bool) -> None:
        storage = tensor.untyped_storage()
        known = self._known.get(storage._cdata)
        if known is None:
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            self._known[storage._cdata] = (reference, layers, is_weight)
        else:
            reference, before, was_weight = known
            self._known[storage._cdata] = (reference, before | layers, was_weight and is_weight)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
