"""Random scores, the baseline that any other criterion should beat."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from kd_prune.pruning.criteria.base import State, StatefulCriterion


@dataclass(frozen=True, kw_only=True)
class Random(StatefulCriterion):
    """Uniform random scores, drawn once per tensor.

    The generator is seeded from `seed` and a hash of the initial weights: tensors of the same shape
    get different scores unless their weights are equal, and all processes that start with the same
    weights get the same scores. A loaded state restores its scores.

    Args:
        seed: Seed of the scores.

    >>> weight = torch.tensor([1.0, 2.0])
    >>> state = Random(seed=1).init_state(weight)
    >>> torch.equal(Random(seed=1)(2 * weight, state), Random(seed=1)(weight, state))
    True
    """

    observes = None
    elementwise = True

    seed: int = 0

    def init_state(self, weight: Tensor) -> State:
        """Draw the scores in [0, 1)."""
        values = weight.detach().cpu().flatten()
        digest = blake2b(values.view(torch.uint8).numpy().tobytes(), digest_size=8)
        digest.update(f"{self.seed} {tuple(weight.shape)}".encode())
        # Drawn on the CPU, because a GPU's generator gives other numbers for the same seed.
        generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()) >> 1)
        return {
            "score": torch.rand(weight.shape, generator=generator, dtype=torch.float32).to(
                weight.device
            )
        }

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """Return the scores drawn at the start."""
        return state["score"]
