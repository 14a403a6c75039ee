"""Scores, masks and granularities shared by the tests of granularities."""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_prune.pruning.granularity.nm import NM
from kd_prune.pruning.granularity.structured import Block, Heads, Rows

# The path of other devices, which also runs on the CPU.
WAYS = pytest.mark.parametrize("on_cpu", [True, False], ids=["numpy", "torch"])


DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(draw, shape, elements, dtype=np.float32):
    return draw(hnp.arrays(dtype, shape, elements=elements, fill=st.nothing()))


def tied(draw, shape):
    """Few distinct values, so that most examples tie."""
    return drawn(draw, shape, st.integers(-2, 2).map(float))


@st.composite
def nm_problems(draw):
    of = draw(st.integers(2, 5))
    pattern = NM(n=draw(st.integers(1, of - 1)), m=of)
    scores = tied(draw, (draw(st.integers(1, 3)), of * draw(st.integers(1, 3))))
    kept = draw(st.one_of(st.just(np.ones(scores.shape, bool)), hnp.arrays(bool, scores.shape)))
    limit = scores.size * (of - pattern.n) // of
    return pattern, scores, draw(st.integers(0, limit)), kept


@st.composite
def tilings(draw):
    """A granularity, and the rows and columns of tiles and of a tile."""
    kind = draw(st.sampled_from([Block, Rows, Heads]))
    down, across, rows, columns = (draw(st.integers(1, 3)) for _ in range(4))
    if kind is Block:
        return Block(rows=rows, columns=columns), down, across, rows, columns
    if kind is Rows:
        return Rows(), down, 1, 1, columns
    axis = draw(st.integers(0, 1))
    heads = Heads(size=columns if axis else rows, axis=axis)
    return heads, *((1, across) if axis else (down, 1)), rows, columns


@st.composite
def tile_problems(draw, scattered=False):
    granularity, down, across, rows, columns = draw(tilings())
    scores = tied(draw, (down * rows, across * columns))
    whole = draw(hnp.arrays(bool, (down, across)))
    kept = np.kron(whole, np.ones((rows, columns), bool)).astype(bool)
    if scattered:
        kept = kept & draw(hnp.arrays(bool, kept.shape))
    return granularity, scores, draw(st.integers(0, scores.size)), kept
