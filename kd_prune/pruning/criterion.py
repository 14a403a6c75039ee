"""What a weight is worth: criteria turn a weight into a score of the same shape.

A criterion is a plain function ``weight → score``; larger means keep. Your own is two lines. One
that has to watch the training first is a `StatefulCriterion`: an object that does not change, and
a memory per tensor which its caller keeps, saves and loads. Here are those of first order and of
the inputs; second order is in `kd_prune.pruning.fisher`.

In what follows ``w`` is a weight and ``g`` the gradient of the loss with respect to it. Memories
and scores are float32, whatever the weight is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

Criterion = Callable[[Tensor], Tensor]
State = dict[str, Tensor]
"""What a criterion remembers of one tensor: plain tensors, saved and loaded as they are."""


def magnitude(weight: Tensor) -> Tensor:
    """Score of a weight, ``|w|``. Source: Han et al. 2015 (arXiv 1506.02626).

    >>> import torch
    >>> magnitude(torch.tensor([-2.0, 0.5]))
    tensor([2.0000, 0.5000])
    """
    return weight.abs()


def check(name: str, value: Any, holds: bool, expected: str) -> None:
    """Raise ValueError unless an argument is what it should be.

    >>> check("decay", 1.5, 1.5 < 1, "a fraction in [0, 1)")
    Traceback (most recent call last):
    ValueError: decay=1.5: expected a fraction in [0, 1)
    """
    if not holds:
        raise ValueError(f"{name}={value}: expected {expected}")


class StatefulCriterion(ABC):
    """A criterion that gathers evidence over steps; its memory is handed in, never kept in it.

    Your own gives `start` and `__call__`, and of the rest what it needs:

    >>> class LargestSeen(StatefulCriterion):
    ...     def start(self, weight):
    ...         return {"largest": torch.zeros_like(weight)}
    ...     def observe(self, weight, evidence, state):
    ...         torch.maximum(state["largest"], evidence.abs(), out=state["largest"])
    ...     def __call__(self, weight, state):
    ...         return state["largest"]
    >>> criterion, weight = LargestSeen(), torch.ones(2)
    >>> state = criterion.start(weight)
    >>> for gradient in ([1.0, -3.0], [2.0, 0.0]):
    ...     criterion.observe(weight, torch.tensor(gradient), state)
    >>> criterion(weight, state)
    tensor([2., 3.])
    """

    observes: ClassVar[Literal["gradient", "input"]] = "gradient"
    """What `observe` is given as evidence, see there."""

    @abstractmethod
    def start(self, weight: Tensor) -> State:
        """Fresh memory of one tensor, on its device."""

    def observe(self, weight: Tensor, evidence: Tensor, state: State) -> None:  # noqa: B027
        """Take in the evidence of one step: changes the tensors of `state` in place, nothing else.

        Args:
            weight: The weight as it was in the backward pass; those pruned before are zero.
            evidence: With ``observes = "gradient"`` the gradient, of the weight's shape, before
                an optimizer step. With ``"input"`` the layer's input at a forward pass in
                training: (…, in_features) for a linear layer, (batch, channels, …) for a
                convolution.
            state: The memory of this tensor.
        """

    @abstractmethod
    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """Score of the weight's shape, float32, larger = keep. May be the memory's own tensor."""

    def compensate(self, weight: Tensor, dropped: Tensor, state: State) -> None:  # noqa: B027
        """After a mask update: may change the weights that remain, in place.

        Args:
            weight: The weights. Those pruned before are zero and have to stay so.
            dropped: Mask of the newly pruned; their values are still in place and stay there.
            state: The memory of this tensor.
        """

    def after_update(self, state: State) -> None:  # noqa: B027
        """At the end of a mask update, in place: for instance forget the evidence from before."""


def _product(weight: Tensor, gradient: Tensor) -> Tensor:
    """``w · g`` in float32, outside of autograd: a new tensor."""
    return weight.detach().float() * gradient.detach().float()


def _zeros(weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape, device=weight.device)


def _or_magnitude(score: Tensor, weight: Tensor, unseen: Tensor) -> Tensor:
    """The score, or ``|w|`` where nothing was seen: equal scores would go in order of index.

    That ranks within a tensor; beside scores of others (`Global`) a magnitude says nothing.
    """
    return torch.where(unseen, weight.detach().abs().float(), score)


@dataclass(frozen=True, kw_only=True)
class Random(StatefulCriterion):
    """Uniform scores, drawn once: what any other criterion should be better than.

    They are drawn from `seed` and a hash of the weights as they are at the start, so tensors of
    one shape get different scores (unless their weights are equal too) and all processes that
    begin with the same weights get the same. A memory that is loaded brings its scores along.

    Args:
        seed: Another one, other scores.

    >>> weight = torch.tensor([1.0, 2.0])
    >>> state = Random(seed=1).start(weight)
    >>> torch.equal(Random(seed=1)(2 * weight, state), Random(seed=1)(weight, state))
    True
    """

    seed: int = 0

    def start(self, weight: Tensor) -> State:
        """The scores, in [0, 1)."""
        values = weight.detach().cpu().flatten()
        digest = blake2b(values.view(torch.uint8).numpy().tobytes(), digest_size=8)
        digest.update(f"{self.seed} {tuple(weight.shape)}".encode())
        # Drawn on the CPU: a GPU's generator gives other numbers.
        generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()) >> 1)
        return {"score": torch.rand(weight.shape, generator=generator).to(weight.device)}

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """The scores that were drawn."""
        return state["score"]


@dataclass(frozen=True, kw_only=True)
class Taylor(StatefulCriterion):
    """What the loss would change by to first order, were the weight zero: a mean of ``|w·g|``.

    ``S ← decay · S + (1 − decay) · |w·g|``, from ``S = 0``. Before any gradient is seen the ranking
    is by magnitude.

    Source: Molchanov et al. 2019 (arXiv 1906.10771), section 3, with a weight as the unit. There
    it is ``(w·g)²``: the same ranking of one step. Decay 0.9 is that of their configurations.

    Args:
        decay: Share of the mean that stays at each step; 0: the last gradient alone.

    Raises:
        ValueError: `decay` outside [0, 1).

    >>> criterion, weight = Taylor(decay=0.5), torch.tensor([2.0, -1.0])
    >>> state = criterion.start(weight)
    >>> criterion.observe(weight, torch.tensor([1.0, 3.0]), state)
    >>> criterion(weight, state)
    tensor([1.0000, 1.5000])
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        """Check the decay."""
        _check_decay("decay", self.decay)

    def start(self, weight: Tensor) -> State:
        """Zeros."""
        return {"score": _zeros(weight)}

    def observe(self, weight: Tensor, evidence: Tensor, state: State) -> None:
        """Mix this step's ``|w·g|`` into the mean."""
        state["score"].lerp_(_product(weight, evidence).abs_(), 1.0 - self.decay)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """The mean."""
        return _or_magnitude(state["score"], weight, unseen=~state["score"].any())


@dataclass(frozen=True, kw_only=True)
class Movement(StatefulCriterion):
    """Weights that move away from zero are kept: ``S ← S − rate · w·g``, from ``S = 0``.

    Before any gradient is seen the ranking is by magnitude.

    Source: Sanh et al. 2020 (arXiv 2005.07683), section 4 and table 1: what their scores
    accumulate, straight through the mask, under plain gradient descent. (Their code trains the
    scores with Adam.) A weight that is pruned keeps its score unless the Pruner lets it regrow.

    Args:
        rate: Factor of all scores; it changes no ranking.

    Raises:
        ValueError: `rate` not above 0.

    >>> criterion, weight = Movement(), torch.tensor([2.0, 2.0])
    >>> state = criterion.start(weight)
    >>> criterion.observe(weight, torch.tensor([1.0, -1.0]), state)  # descent: down, up
    >>> criterion(weight, state)
    tensor([-2.,  2.])
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        """Check the rate."""
        _check_rate(self.rate)

    def start(self, weight: Tensor) -> State:
        """Zeros."""
        return {"score": _zeros(weight)}

    def observe(self, weight: Tensor, evidence: Tensor, state: State) -> None:
        """Add this step's movement."""
        state["score"].sub_(_product(weight, evidence), alpha=self.rate)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """The sum."""
        return _or_magnitude(state["score"], weight, unseen=~state["score"].any())


@dataclass(frozen=True, kw_only=True)
class SoftMovement(StatefulCriterion):
    """Movement with a pull downwards, so that a threshold can decide how many weights stay.

    Scores ``S``, from 0, are trained beside the weights: Adam with `rate` and betas of 0.9 and
    0.999 on the loss plus ``penalty · mean σ(S)``, whose gradient, straight through the mask, is::

        G = w·g + penalty · σ(S)·(1 − σ(S)) / n       n: weights of the tensor

    The score is ``σ(S)``; `Threshold` prunes where it is at most 0.1, `layerwise` by its rank.
    Before any gradient is seen it is ``σ(|w|)``, which is above that and ranks by magnitude. By
    the pull alone it falls from ½ to 0.1 in 276 steps at a rate of 0.01, so give a run
    several times as many. Takes three float32 per weight.

    Source: Sanh et al. 2020 (arXiv 2005.07683), section 4.3, and their code, where the mean is
    also over the tensors: its λ is `penalty` times their number (400 on SQuAD: 5.6 for the 72
    matrices of BERT-base). There λ rises with the cubic schedule; here it is there from the start.

    Args:
        penalty: Weight of the mean of ``σ(S)`` beside the loss; 0: no pull.
        rate: Learning rate of ``S``.

    Raises:
        ValueError: `rate` not above 0, `penalty` below 0.

    >>> criterion = SoftMovement(rate=1.0, penalty=1.0)
    >>> weight = torch.tensor([2.0, 2.0])
    >>> state = criterion.start(weight)
    >>> criterion.observe(weight, torch.tensor([1.0, -1.0]), state)  # Adam's first step: the rate
    >>> criterion(weight, state)
    tensor([0.2689, 0.7311])
    """

    penalty: float
    rate: float = 0.01

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_rate(self.rate)
        check("penalty", self.penalty, 0 <= self.penalty < torch.inf, "a number ≥ 0 (0: no pull)")

    def start(self, weight: Tensor) -> State:
        """Zeros: the scores, Adam's two means and its steps."""
        steps = torch.zeros((), dtype=torch.int64, device=weight.device)
        means = {name: _zeros(weight) for name in ("movement", "mean", "mean_square")}
        return means | {"steps": steps}

    def observe(self, weight: Tensor, evidence: Tensor, state: State) -> None:
        """One step of Adam on the scores."""
        opened = state["movement"].sigmoid()
        slope = _product(weight, evidence)
        slope.add_(opened * (1.0 - opened), alpha=self.penalty / weight.numel())
        steps = state["steps"].add_(1)
        mean = state["mean"].lerp_(slope, 1.0 - 0.9)
        square = state["mean_square"].lerp_(slope.square(), 1.0 - 0.999)
        # 1 − betaᵗ: what a mean that began at zero lacks. expm1 keeps its digits in float32.
        unbiased, unbiased_square = (-(steps * math.log(beta)).expm1() for beta in (0.9, 0.999))
        size = (square / unbiased_square).sqrt_().add_(1e-8)
        state["movement"].sub_((mean / unbiased).div_(size), alpha=self.rate)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """``σ(S)``, in [0, 1]."""
        return _or_magnitude(state["movement"], weight, unseen=state["steps"] == 0).sigmoid()


@dataclass(frozen=True, kw_only=True)
class Platon(StatefulCriterion):
    """First-order worth times how uncertain it is, so that a weight in doubt is not pruned yet.

    With ``I = |w·g|``, from zeros, in this order::

        Ī ← beta1 · Ī + (1 − beta1) · I
        U ← beta2 · U + (1 − beta2) · |I − Ī|
        score = Ī · U

    Before any gradient is seen the ranking is by magnitude.

    Source: Zhang et al. 2022 (arXiv 2206.12562), section 3, and ``Pruner.py`` of
    QingruZhang/PLATON, where ``U`` too uses the ``Ī`` just made. There both are updated every
    10 steps with the mean ``I`` of those, and ``w`` is read after the optimizer step; here at
    every step, with ``w`` and ``g`` of one backward pass. So their betas mean ten times as long.

    Args:
        beta1: Decay of ``Ī``.
        beta2: Decay of ``U``.

    Raises:
        ValueError: A decay outside [0, 1).

    >>> criterion, weight = Platon(beta1=0.5, beta2=0.5), torch.tensor([2.0, -1.0])
    >>> state = criterion.start(weight)
    >>> criterion.observe(weight, torch.tensor([1.0, 4.0]), state)
    >>> criterion(weight, state)  # Ī = (1, 2), U = (0.5, 1)
    tensor([0.5000, 2.0000])
    """

    beta1: float = 0.85
    beta2: float = 0.95

    def __post_init__(self) -> None:
        """Check the decays."""
        _check_decay("beta1", self.beta1)
        _check_decay("beta2", self.beta2)

    def start(self, weight: Tensor) -> State:
        """Zeros."""
        return {"worth": _zeros(weight), "uncertainty": _zeros(weight)}

    def observe(self, weight: Tensor, evidence: Tensor, state: State) -> None:
        """Mix this step's ``|w·g|`` into the means."""
        now = _product(weight, evidence).abs_()
        state["worth"].lerp_(now, 1.0 - self.beta1)
        state["uncertainty"].lerp_(now.sub_(state["worth"]).abs_(), 1.0 - self.beta2)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """``Ī · U``."""
        score = state["worth"] * state["uncertainty"]
        return _or_magnitude(score, weight, unseen=~state["worth"].any())


@dataclass(frozen=True, kw_only=True)
class Wanda(StatefulCriterion):
    """Magnitude times the size of what the weight is multiplied with: ``|w_ij| · ‖x_j‖₂ / √rows``.

    ``x_j`` is input feature ``j`` over all rows seen since the last mask update: tokens of a
    linear layer, positions of a convolution, whose channel's norm goes for all kernel positions.
    Before any input is seen the norm counts as 1. Padded tokens are rows like others.

    Source: Sun et al. 2023 (arXiv 2306.11695), eq. 1. The number of rows, which is the same for a
    whole tensor and is divided out in their code too, keeps layers that see different numbers of
    rows comparable. They compare weights within each output row only; how weights compete is not
    the criterion's matter but the selection's.

    Weights are (out, in) or, for convolutions with groups=1, (out, in, …).

    Raises:
        ValueError: (at the start) a weight of one dimension; (when observing) an input that has
            not the weight's number of features.

    >>> criterion, weight = Wanda(), torch.tensor([[1.0, -1.0]])
    >>> state = criterion.start(weight)
    >>> criterion.observe(weight, torch.tensor([[3.0, 0.0], [3.0, 2.0]]), state)
    >>> criterion(weight, state)
    tensor([[3.0000, 1.4142]])
    """

    observes = "input"

    def start(self, weight: Tensor) -> State:
        """Sums of squares per input feature, (in,), and the number of rows."""
        shape = tuple(weight.shape)
        expected = "(out, in) or (out, in, …); leave biases and norms out of the scope"
        check("weight of shape", shape, weight.ndim >= 2, expected)
        rows = torch.zeros((), dtype=torch.int64, device=weight.device)
        return {"squares": torch.zeros(weight.shape[1], device=weight.device), "rows": rows}

    def observe(self, weight: Tensor, evidence: Tensor, state: State) -> None:
        """Add the rows of one input."""
        axis = -1 if weight.ndim == 2 else 1
        features = weight.shape[1]
        check(
            "input of shape",
            tuple(evidence.shape),
            -evidence.ndim <= axis < evidence.ndim and evidence.shape[axis] == features,
            f"{features} features on axis {axis}, as the weight {tuple(weight.shape)} has; leave "
            "grouped and transposed convolutions and embeddings out of the scope",
        )
        rows = evidence.detach().movedim(axis, -1).reshape(-1, features).float()
        state["squares"].add_(rows.square().sum(0))
        state["rows"].add_(len(rows))

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """``|w_ij| · ‖x_j‖₂ / √rows``."""
        squares, rows = state["squares"], state["rows"]
        size = (squares / rows).sqrt().where(rows > 0, torch.ones_like(squares))
        return weight.detach().abs().float() * size.view(-1, *[1] * (weight.ndim - 2))

    def after_update(self, state: State) -> None:
        """Forget the inputs of the denser network."""
        state["squares"].zero_()
        state["rows"].zero_()


def _check_decay(name: str, value: float) -> None:
    check(name, value, 0 <= value < 1, "a fraction in [0, 1): the share of the old that stays")


def _check_rate(rate: float) -> None:
    check("rate", rate, 0 < rate < torch.inf, "a number > 0, or high scores would mean drop")
