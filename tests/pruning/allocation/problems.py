"""Models, masks and allocations shared by the tests of allocations."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)


# Few distinct values, so that most examples tie.
TIED = hnp.arrays(np.float32, SHAPES, elements=st.integers(-2, 2).map(float), fill=st.nothing())


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def apportion_oracle(total, weights, limits):
    """Divide in proportion, fix shares above their limit, repeat; then largest remainders."""
    weights = [Fraction(weight) for weight in weights]
    shares = [Fraction(0)] * len(weights)
    free, over, left = {i for i, weight in enumerate(weights) if weight}, {-1}, Fraction(total)
    while free and over:
        rate = left / sum(weights[i] for i in free)
        over = {i for i in free if rate * weights[i] > limits[i]}
        for i in free:
            shares[i] = Fraction(limits[i]) if i in over else rate * weights[i]
        free -= over
        left -= sum(limits[i] for i in over)
    whole = [floor(share) for share in shares]
    while sum(whole) < total:
        remainders = [share - n for share, n in zip(shares, whole, strict=True)]
        whole[remainders.index(max(remainders))] += 1
    return whole


def sizes_of(arrays):
    return {name: array.size for name, array in arrays.items()}


def limits_oracle(kept, sparsity, bottom, ceiling):
    """Lowest and highest counts, and the total."""
    gone = {name: int((~mask).sum()) for name, mask in kept.items()}
    total = max(round(sparsity * sum(sizes_of(kept).values())), sum(gone.values()))
    high = {name: max(gone[name], ceil(ceiling * mask.size)) for name, mask in kept.items()}
    raise_by = [
        max(floor(min(bottom, sparsity) * mask.size) - gone[name], 0) for name, mask in kept.items()
    ]
    affordable = total - sum(gone.values())
    if sum(raise_by) > affordable:
        raise_by = apportion_oracle(affordable, raise_by, raise_by)
    low = {name: gone[name] + n for name, n in zip(kept, raise_by, strict=True)}
    return low, high, total


@st.composite
def models(draw, all_kept=False):
    scores = {str(i): draw(TIED) for i in range(draw(st.integers(1, 4)))}
    kept = {
        name: np.ones(s.shape, bool)
        if all_kept
        else draw(hnp.arrays(np.bool_, s.shape, fill=st.nothing()))
        for name, s in scores.items()
    }
    return scores, kept


def counts_of(allocation, scores, kept, sparsity):
    masks = {name: torch.from_numpy(mask) for name, mask in kept.items()}
    return allocation(masks, lambda name: torch.from_numpy(scores[name]), sparsity)


def unread(name):
    raise AssertionError("no score is needed")
