"""What a weight is worth: criteria turn a weight into a score of the same shape.

A criterion is a plain function ``weight → score``; larger means keep. Your own is two lines.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Criterion = Callable[[Tensor], Tensor]


def magnitude(weight: Tensor) -> Tensor:
    """Score of a weight, ``|w|``. Source: Han et al. 2015 (arXiv 1506.02626).

    >>> import torch
    >>> magnitude(torch.tensor([-2.0, 0.5]))
    tensor([2.0000, 0.5000])
    """
    return weight.abs()
