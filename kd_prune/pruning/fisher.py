"""Criteria of second order: what a weight is worth by the curvature of the loss.

Near an optimum a change ``δ`` of the weights costs about ``½ δᵀ F δ``, where ``F`` is the empirical
Fisher matrix, ``λI + mean(g gᵀ)`` over gradients ``g``. `DiagonalFisher` keeps its diagonal,
`BlockFisher` blocks along it, and knows how the remaining weights make up for those that go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from kd_prune.pruning.criterion import State, StatefulCriterion, check

# Share of a block's Frobenius norm that damping is never less than: rounding of the float32 sums
# was seen to shift eigenvalues by up to a quarter of it, over some thousand gradients of one
# direction but different sizes.
_RESOLUTION = 4e-6
# Entries of the blocks solved at a time: 32 MB in float64.
_AT_A_TIME = 2**22


@dataclass(frozen=True, kw_only=True)
class DiagonalFisher(StatefulCriterion):
    """What the loss would change by to second order, were the weight zero: ``½ w² (λ + E[g²])``.

    ``E[g²]`` is the mean over the gradients seen, until the average with `decay` takes over:
    ``E ← E + r · (g² − E)`` with ``r = max(1/t, 1 − decay)`` at the t-th gradient. Takes one
    float32 per weight. Before any gradient is seen the ranking is by magnitude.

    Source: Kurtic et al. 2022 (arXiv 2203.07259), section 3, with blocks of one weight; the idea
    is that of LeCun et al. 1989, Optimal Brain Damage.

    Args:
        damping: λ.
        decay: Share of the mean that stays at each step in a long run; 1: the mean of all.

    Raises:
        ValueError: `damping` not above 0, or `decay` outside [0, 1].

    >>> criterion, weight = DiagonalFisher(), torch.tensor([2.0, -1.0])
    >>> state = criterion.start(weight)
    >>> for gradient in ([1.0, 3.0], [0.0, 1.0]):
    ...     criterion.observe(weight, torch.tensor(gradient), state)
    >>> criterion(weight, state)
    tensor([1.0000, 2.5000])
    """

    damping: float = 1e-7
    decay: float = 0.999

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_damping(self.damping)
        check("decay", self.decay, 0 <= self.decay <= 1, "a fraction in [0, 1]; 1: the mean of all")

    def start(self, weight: Tensor) -> State:
        """Zeros."""
        squares = torch.zeros(weight.shape, device=weight.device)
        return {"squares": squares, "gradients": _none_yet(weight)}

    def observe(self, weight: Tensor, evidence: Tensor, state: State) -> None:
        """Mix this step's ``g²`` into the mean."""
        state["gradients"].add_(1)
        rate = (1.0 / state["gradients"]).clamp_(min=1.0 - self.decay)
        state["squares"].lerp_(evidence.detach().float().square(), rate)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """``½ w² (λ + E[g²])``."""
        return 0.5 * weight.detach().float().square() * (state["squares"] + self.damping)


@dataclass(frozen=True, kw_only=True)
class BlockFisher(StatefulCriterion):
    """oBERT: what the loss would change by if the weight went and its block made up for it.

    The flattened tensor is cut into blocks of `block` consecutive weights. For each::

        F = λI + mean(g gᵀ)          over the last gradients, of the weights that are not zero
        score of j = w_j² / (2 [F⁻¹]_jj)
        δ = −F⁻¹ E_Q ([F⁻¹]_QQ)⁻¹ w_Q     what `compensate` adds to the others when Q is pruned

    The mean is over all gradients since the last mask update; whenever there are twice `gradients`
    of them, those so far count half from then on. Before any gradient is seen the ranking is by
    magnitude and nothing is made up for; see that several steps lie between updates.

    Source: Kurtic et al. 2022 (arXiv 2203.07259), section 3. Three things differ from their code.
    It keeps ``F⁻¹`` by rank-one (Woodbury) updates from ``I/λ``; here ``F`` is kept, which takes
    as much memory, and solved in float64 when scores are asked for: with λ = 1e-7 and gradients
    of size 1 their way is off by 4 % in float32, this by 0.01 %. It divides by a number of
    gradients that is given beforehand; here they are counted. And it adds up the ``δ`` of the
    pruned weights taken one by one; here all that go from a block go at once, as in the formula.

    Takes ``block + 1`` float32 per weight: 17 GB for the 85 M of BERT-base at 50. Every gradient
    goes through all of that memory, so a step costs as much as a pass over it. Scores need
    float64 on the weight's device.

    Args:
        block: Weights in a block. 1 is `DiagonalFisher`.
        damping: λ; raised to 4e-6 of a block's Frobenius norm where it is less, as float32 sums
            resolve nothing below.
        gradients: About how far back the mean goes.

    Raises:
        ValueError: `block` or `gradients` below 1, `damping` not above 0, or (when called)
            gradients that were not finite.

    >>> criterion, weight = BlockFisher(block=2), torch.tensor([1.0, 3.0, 2.0])
    >>> state = criterion.start(weight)
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
        """Check the arguments."""
        check("block", self.block, self.block >= 1, "weights in a block, at least 1; try 50")
        _check_damping(self.damping)
        expected = "how many gradients the mean is over, at least 1; try 1024"
        check("gradients", self.gradients, self.gradients >= 1, expected)

    def start(self, weight: Tensor) -> State:
        """Blocks of zeros, (blocks, block, block), and the diagonal of ``F⁻¹`` that goes with it.

        The diagonal is kept because an allocation may ask for the scores several times.
        """
        blocks = -(-weight.numel() // self.block)
        state = {
            "sum": torch.empty(blocks, self.block, self.block, device=weight.device),
            "inverse_diagonal": torch.empty(blocks, self.block, device=weight.device),
            "gradients": _none_yet(weight),
            "stale": torch.zeros((), dtype=torch.bool, device=weight.device),
        }
        self.after_update(state)
        return state

    def observe(self, weight: Tensor, evidence: Tensor, state: State) -> None:
        """Add this step's ``g gᵀ``.

        A weight that is zero is pruned and cannot make up for another; without its gradient it
        is alone in its block, and the inverse is that of the weights that remain.
        """
        gradient = evidence.detach().float() * (weight.detach() != 0)
        rows = self._in_blocks(gradient)
        state["sum"].baddbmm_(rows.unsqueeze(2), rows.unsqueeze(1))
        state["gradients"].add_(1)
        state["stale"].fill_(True)
        if state["gradients"] == 2 * self.gradients:
            # Halving is exact. A decay at every step is not, and always errs to the same side.
            state["sum"].mul_(0.5)
            state["gradients"].floor_divide_(2)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """``w² / (2 [F⁻¹]_jj)``."""
        inverse = state["inverse_diagonal"]
        if state["stale"]:
            for some in self._at_a_time(torch.arange(len(inverse), device=inverse.device)):
                factor = torch.linalg.cholesky(self._damped(some, state))
                inverse[some] = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2).float()
            state["stale"].fill_(False)
        spread = inverse.flatten()[: weight.numel()].view(weight.shape)
        return weight.detach().float().square() / (2.0 * spread)

    def compensate(self, weight: Tensor, dropped: Tensor, state: State) -> None:
        """Add ``δ`` to the weights that remain: the least ``½ δᵀFδ`` with ``δ_Q = −w_Q``.

        ``Q`` is all that is pruned, before (where the weight is zero) and now. In terms of ``F``
        itself ``δ`` of the others ``K`` is ``F_KK⁻¹ F_KQ w_Q``.
        """
        value = self._in_blocks(weight.detach().double())
        leaving = self._in_blocks(dropped)
        stay = (value != 0) & ~leaving
        change = torch.zeros_like(value)
        for some in self._at_a_time(leaving.any(1).nonzero().squeeze(1)):
            fisher, free = self._damped(some, state), stay[some]
            lost = (value[some] * leaving[some]).unsqueeze(2)
            pull = (fisher @ lost).squeeze(2) * free
            # With rows and columns of the identity for Q, every block is one system of full size.
            fisher *= free.unsqueeze(2) & free.unsqueeze(1)
            fisher += torch.diag_embed((~free).double())
            factor = torch.linalg.cholesky(fisher)
            change[some] = torch.cholesky_solve(pull.unsqueeze(2), factor).squeeze(2)
        moved = (value + change).flatten()[: weight.numel()]
        weight.detach().copy_(moved.view(weight.shape))

    def after_update(self, state: State) -> None:
        """Start the estimate anew: it was that of other weights."""
        state["sum"].zero_()
        state["inverse_diagonal"].fill_(1.0 / self.damping)
        state["gradients"].zero_()
        state["stale"].fill_(False)

    def _in_blocks(self, values: Tensor) -> Tensor:
        """(blocks, block), the last one filled up with zeros."""
        flat = values.flatten()
        return pad(flat, (0, -len(flat) % self.block)).view(-1, self.block)

    def _at_a_time(self, blocks: Tensor) -> Iterator[Tensor]:
        """The block numbers in parts that are small enough to be solved together."""
        part = max(1, _AT_A_TIME // self.block**2)
        for begin in range(0, len(blocks), part):
            yield blocks[begin : begin + part]

    def _damped(self, some: Tensor, state: State) -> Tensor:
        """``F`` of these blocks, λ included, in float64: a new tensor."""
        fisher = state["sum"][some].double().div_(state["gradients"].clamp(min=1))
        norm = torch.linalg.matrix_norm(fisher).unsqueeze(1)
        if not norm.isfinite().all():
            raise ValueError(
                "a gradient held NaN or infinity, so weights cannot be ranked: lower the learning "
                "rate or the loss scale, or clip the gradients"
            )
        diagonal = fisher.diagonal(dim1=1, dim2=2)
        diagonal.add_((_RESOLUTION * norm).clamp_(min=self.damping))
        # Rounding of gradients that are always the same goes to one side and adds up, at most to
        # this; a matrix with a negative eigenvalue has no factor.
        indefinite = torch.linalg.cholesky_ex(fisher).info.unsqueeze(1) > 0
        diagonal.add_(torch.finfo(torch.float32).eps * state["gradients"] * norm * indefinite)
        return fisher


def _none_yet(weight: Tensor) -> Tensor:
    """A count, kept where the weight is so that counting waits for no device."""
    return torch.zeros((), dtype=torch.int64, device=weight.device)


def _check_damping(damping: float) -> None:
    expected = "a number > 0, or F of few gradients cannot be inverted; try 1e-7"
    check("damping", damping, 0 < damping < torch.inf, expected)
