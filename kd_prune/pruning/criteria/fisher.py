"""Second-order criteria: the increase of the loss estimated from its curvature.

Near an optimum a change ``δ`` of the weights increases the loss by about ``½ δᵀ F δ``, where ``F``
is the empirical Fisher matrix, ``λI + mean(g gᵀ)`` over gradients ``g``. `DiagonalFisher` keeps the
diagonal of ``F``. `BlockFisher` keeps diagonal blocks and changes the remaining weights to
compensate for the pruned ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kd_prune.pruning.checks import check
from kd_prune.pruning.criteria.base import State, StatefulCriterion, float_zeros

# Lower bound of the damping as a fraction of a block's Frobenius norm. Rounding of the float32 sums
# over some thousand gradients of one direction shifted eigenvalues by up to a quarter of it.
_MIN_RELATIVE_DAMPING = 4e-6
_LARGEST = torch.finfo(torch.float32).max  # an average with an infinite square becomes NaN
# Matrix entries solved in one batch: 32 MB in float64.
_BATCH_ENTRIES = 2**22


@dataclass(frozen=True, kw_only=True)
class DiagonalFisher(StatefulCriterion):
    """Second-order change of the loss if the weight were zero: ``½ w² (λ + E[g²])``.

    ``E[g²]`` is the mean over all gradients at first and a moving average later:
    ``E ← E + r · (g² − E)`` with ``r = max(1/t, 1 − decay)`` at the t-th gradient. The state takes
    one float32 per weight. Before the first gradient, weights are ranked by magnitude.

    Source: Kurtic et al. 2022 (arXiv 2203.07259), section 3, with blocks of one weight;
    first in LeCun et al. 1989, Optimal Brain Damage.

    Args:
        damping: λ.
        decay: Weight of the previous average at each step of a long run; 1: the mean of all.

    Raises:
        ConfigError: `damping` not above 0, or `decay` outside [0, 1].

    >>> criterion, weight = DiagonalFisher(), torch.tensor([2.0, -1.0])
    >>> state = criterion.init_state(weight)
    >>> for gradient in ([1.0, 3.0], [0.0, 1.0]):
    ...     criterion.observe(weight, torch.tensor(gradient), state)
    >>> criterion(weight, state)
    tensor([1.0000, 2.5000])
    """

    elementwise = True

    damping: float = 1e-7
    decay: float = 0.999

    def __post_init__(self) -> None:
        _check_damping(self.damping)
        check("decay", self.decay, 0 <= self.decay <= 1, "a fraction in [0, 1]; 1: the mean of all")

    def init_state(self, weight: Tensor) -> State:
        """Return a zero average and a gradient count of 0."""
        return {"squares": float_zeros(weight), "gradients": _zero_count(weight)}

    def observe(self, weight: Tensor, grad_or_input: Tensor, state: State) -> None:
        """Add this step's ``g²`` to the average."""
        state["gradients"].add_(1)
        rate = (1.0 / state["gradients"]).clamp_(min=1.0 - self.decay)
        squares = grad_or_input.detach().float().square().clamp_(max=_LARGEST)
        state["squares"].lerp_(squares, rate)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """Return ``½ w² (λ + E[g²])``."""
        return 0.5 * weight.detach().float().square() * (state["squares"] + self.damping)


@dataclass(frozen=True, kw_only=True)
class BlockFisher(StatefulCriterion):
    """Increase of the loss if the weight were zero and its block compensated for it (oBERT).

    The flattened tensor is cut into blocks of `block` consecutive weights. For each block::

        F = λI + mean(g gᵀ)          over the last gradients, of the weights that are not zero
        score of j = w_j² / (2 [F⁻¹]_jj)
        δ = −F⁻¹ E_Q ([F⁻¹]_QQ)⁻¹ w_Q     added by `compensate` to the others when Q is pruned

    The mean is over all gradients since the last mask update; when their number reaches twice
    `gradients`, the weight of all earlier ones is halved. Before the first gradient, weights are
    ranked by magnitude and nothing is compensated, so leave several steps between updates.

    Source: Kurtic et al. 2022 (arXiv 2203.07259), section 3. Three things differ from their code.
    It keeps ``F⁻¹`` by rank-one (Woodbury) updates from ``I/λ``; here ``F`` is kept, which takes
    as much memory, and solved in float64 when scores are computed: with λ = 1e-7 and gradients
    of size 1 the Woodbury updates are off by 4 % in float32, the solution by 0.01 %. It divides by
    a preset number of gradients; here they are counted. It adds up the ``δ`` of single pruned
    weights; here all pruned weights of a block are treated jointly, as in the formula.

    The state takes ``block + 1`` float32 per weight: 17 GB for the 85 M weights of BERT-base at 50.
    Every step passes over the full state. Scores need float64 on the weight's device.

    Args:
        block: Weights in a block. 1 is `DiagonalFisher`.
        damping: λ; at least 4e-6 of a block's Frobenius norm is used, the resolution of float32
            sums.
        gradients: Approximate number of gradients in the mean.

    Raises:
        ConfigError: `block` or `gradients` below 1, `damping` not above 0.
        ValueError: (when called) Gradients were not finite.

    >>> criterion, weight = BlockFisher(block=2), torch.tensor([1.0, 3.0, 2.0])
    >>> state = criterion.init_state(weight)
    >>> for gradient in ([1.0, 1.0, 0.0], [1.0, 0.0, 2.0]):  # F of the first two: ((1, ½), (½, ½))
    ...     criterion.observe(weight, torch.tensor(gradient), state)
    >>> criterion(weight, state)
    tensor([0.2500, 1.1250, 4.0000])
    >>> criterion.compensate(weight, torch.tensor([True, False, False]), state)
    >>> weight  # w₁ ← 3 + F₁₀ w₀ / F₁₁
    tensor([1.0000, 4.0000, 2.0000])
    """

    block: int = 50
    damping: float = 1e-7
    gradients: int = 1024

    def __post_init__(self) -> None:
        check("block", self.block, self.block >= 1, "at least 1 weight in a block; try 50")
        _check_damping(self.damping)
        expected = "at least 1 gradient in the mean; try 1024"
        check("gradients", self.gradients, self.gradients >= 1, expected)

    def init_state(self, weight: Tensor) -> State:
        """Return zero blocks, (blocks, block, block), and the diagonal of the initial ``F⁻¹``.

        The diagonal is cached because an allocation may compute the scores several times.
        """
        blocks = -(-weight.numel() // self.block)
        float32: Any = {"dtype": torch.float32, "device": weight.device}
        state = {
            "sum": torch.empty(blocks, self.block, self.block, **float32),
            "inverse_diagonal": torch.empty(blocks, self.block, **float32),
            "gradients": _zero_count(weight),
            "stale": torch.zeros((), dtype=torch.bool, device=weight.device),
        }
        self.after_update(state)
        return state

    def observe(self, weight: Tensor, grad_or_input: Tensor, state: State) -> None:
        """Add this step's ``g gᵀ`` to the sum.

        The gradients of zero weights are masked out: a pruned weight cannot compensate for another,
        and without its row and column the inverse is that of the remaining weights.
        """
        gradient = grad_or_input.detach().float() * (weight.detach() != 0)
        rows = self._in_blocks(gradient)
        state["sum"].baddbmm_(rows.unsqueeze(2), rows.unsqueeze(1))
        state["gradients"].add_(1)
        state["stale"].fill_(True)
        if state["gradients"] == 2 * self.gradients:
            # Halving is exact; a decay at every step would accumulate rounding errors of one sign.
            state["sum"].mul_(0.5)
            state["gradients"].floor_divide_(2)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """Return ``w² / (2 [F⁻¹]_jj)``."""
        inverse = state["inverse_diagonal"]
        if state["stale"]:
            for batch in self._batches(torch.arange(len(inverse), device=inverse.device)):
                factor = torch.linalg.cholesky(self._damped_fisher(batch, state))
                inverse[batch] = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2).float()
            state["stale"].fill_(False)
        diagonal = inverse.flatten()[: weight.numel()].view(weight.shape)
        return weight.detach().float().square() / (2.0 * diagonal)

    def compensate(self, weight: Tensor, dropped: Tensor, state: State) -> None:
        """Add ``δ`` to the remaining weights: the minimum of ``½ δᵀFδ`` with ``δ_Q = −w_Q``.

        ``Q`` are the weights pruned now or earlier (where the weight is zero), ``K`` the remaining
        ones. In terms of ``F``, ``δ_K = F_KK⁻¹ F_KQ w_Q``.
        """
        value = self._in_blocks(weight.detach().double())
        pruned_now = self._in_blocks(dropped)
        stay = (value != 0) & ~pruned_now
        change = torch.zeros_like(value)
        for batch in self._batches(pruned_now.any(1).nonzero().squeeze(1)):
            fisher, free = self._damped_fisher(batch, state), stay[batch]
            removed = (value[batch] * pruned_now[batch]).unsqueeze(2)
            rhs = (fisher @ removed).squeeze(2) * free
            # Rows and columns of Q are replaced by the identity, so all systems have the same size.
            fisher *= free.unsqueeze(2) & free.unsqueeze(1)
            fisher += torch.diag_embed((~free).double())
            factor = torch.linalg.cholesky(fisher)
            change[batch] = torch.cholesky_solve(rhs.unsqueeze(2), factor).squeeze(2)
        compensated = (value + change).flatten()[: weight.numel()]
        weight.detach().copy_(compensated.view(weight.shape))

    def after_update(self, state: State) -> None:
        """Reset the estimate: it was computed at other weights."""
        state["sum"].zero_()
        state["inverse_diagonal"].fill_(1.0 / self.damping)
        state["gradients"].zero_()
        state["stale"].fill_(False)

    def _in_blocks(self, values: Tensor) -> Tensor:
        """Reshape to (blocks, block), padding the last block with zeros."""
        flat = values.flatten()
        return pad(flat, (0, -len(flat) % self.block)).view(-1, self.block)

    def _batches(self, blocks: Tensor) -> Iterator[Tensor]:
        """Split block indices into batches that are solved together."""
        size = max(1, _BATCH_ENTRIES // self.block**2)
        for begin in range(0, len(blocks), size):
            yield blocks[begin : begin + size]

    def _damped_fisher(self, batch: Tensor, state: State) -> Tensor:
        """Return ``F`` of these blocks with damping, in float64, as a new tensor."""
        fisher = state["sum"][batch].double().div_(state["gradients"].clamp(min=1))
        norm = torch.linalg.matrix_norm(fisher).unsqueeze(1)
        if not norm.isfinite().all():
            raise ValueError(
                "a gradient contained NaN or infinity, so weights cannot be ranked: lower the "
                "learning rate or the loss scale, or clip the gradients"
            )
        diagonal = fisher.diagonal(dim1=1, dim2=2)
        diagonal.add_((_MIN_RELATIVE_DAMPING * norm).clamp_(min=self.damping))
        # Rounding errors of identical gradients have one sign and add up, at most to this bound. A
        # matrix with a negative eigenvalue has no Cholesky factor.
        indefinite = torch.linalg.cholesky_ex(fisher).info.unsqueeze(1) > 0
        diagonal.add_(torch.finfo(torch.float32).eps * state["gradients"] * norm * indefinite)
        return fisher


def _zero_count(weight: Tensor) -> Tensor:
    """Return a count of 0 on the weight's device, so that counting does not synchronize."""
    return torch.zeros((), dtype=torch.int64, device=weight.device)


def _check_damping(damping: float) -> None:
    expected = "a number > 0, or F of few gradients is singular; try 1e-7"
    check("damping", damping, 0 < damping < torch.inf, expected)
