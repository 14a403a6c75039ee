"""The interface of criteria, the magnitude criterion, and helpers shared by gradient criteria."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

Criterion = Callable[[Tensor], Tensor]
State = dict[str, Tensor]
"""A criterion's state for one tensor: plain tensors, saved and loaded as they are."""


def magnitude(weight: Tensor) -> Tensor:
    """Score weights by ``|w|``. Source: Han et al. 2015 (arXiv 1506.02626).

    >>> import torch
    >>> magnitude(torch.tensor([-2.0, 0.5]))
    tensor([2.0000, 0.5000])
    """
    return weight.abs()


class StatefulCriterion(ABC):
    """A criterion with state that it updates from gradients or inputs; the caller keeps the state.

    Subclasses define `init_state` and `__call__`, and the other methods where they need them:

    >>> class LargestGradient(StatefulCriterion):
    ...     def init_state(self, weight):
    ...         return {"largest": torch.zeros_like(weight)}
    ...     def observe(self, weight, grad_or_input, state):
    ...         torch.maximum(state["largest"], grad_or_input.abs(), out=state["largest"])
    ...     def __call__(self, weight, state):
    ...         return state["largest"]
    >>> criterion, weight = LargestGradient(), torch.ones(2)
    >>> state = criterion.init_state(weight)
    >>> for gradient in ([1.0, -3.0], [2.0, 0.0]):
    ...     criterion.observe(weight, torch.tensor(gradient), state)
    >>> criterion(weight, state)
    tensor([2., 3.])
    """

    observes: ClassVar[Literal["gradient", "input"] | None] = "gradient"
    """Which tensor `observe` receives as `grad_or_input`; None: it is not called."""

    elementwise: ClassVar[bool] = False
    """Whether each entry that `observe` changes depends on the same entry of weight and gradient
    alone, besides numbers such as a step count. Of a sharded model every process then observes
    its own part of a tensor; otherwise the whole tensor is gathered at each step."""

    @abstractmethod
    def init_state(self, weight: Tensor) -> State:
        """Return the initial state for one tensor, on the tensor's device."""

    def observe(self, weight: Tensor, grad_or_input: Tensor, state: State) -> None:  # noqa: B027
        """Update the tensors of `state` in place from one step; change nothing else.

        Args:
            weight: The weight as used in the backward pass; earlier pruned weights are zero, or
                with ``regrow=True`` have the value that they were pruned with.
            grad_or_input: With ``observes = "gradient"`` the gradient, of the weight's shape,
                before an optimizer step. With ``"input"`` the layer's input in a forward pass in
                training: (…, in_features) for a linear layer, (batch, channels, …) for a
                convolution.
            state: The state of this tensor.
        """

    @abstractmethod
    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """Return scores of the weight's shape, float32; a tensor of the state may be returned."""

    def compensate(self, weight: Tensor, dropped: Tensor, state: State) -> None:  # noqa: B027
        """Adjust the remaining weights in place after a mask update.

        Args:
            weight: The weights. Weights pruned earlier are zero and must stay zero.
            dropped: Mask of the newly pruned weights; their values must not be changed.
            state: The state of this tensor.
        """

    def after_update(self, state: State) -> None:  # noqa: B027
        """Change the state in place at the end of a mask update, for example reset it."""


def weight_times_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return ``w · g`` in float32 as a new tensor, without autograd."""
    return weight.detach().float() * gradient.detach().float()


def float_zeros(weight: Tensor) -> Tensor:
    """Return float32 zeros of the weight's shape on its device."""
    return torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)


def magnitude_if_unobserved(score: Tensor, weight: Tensor, observed: Tensor) -> Tensor:
    """Return the score, or ``|w|`` where `observed` is still zero and all scores are equal.

    The fallback ranks within a tensor only; it is not comparable with scores of other tensors
    (see `Observations`).
    """
    unobserved = observed.count_nonzero() == 0
    if unobserved.device.type == "cpu" and not unobserved:  # on a GPU, reading it would wait
        return score.clone()  # who ranks it may change it
    return torch.where(unobserved, weight.detach().abs().float(), score)
