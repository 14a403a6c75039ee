"""Terms on relations between tokens within attention heads, for models of any width."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_prune.distillation.activations import HEADS, Activations, Batch
from kd_prune.distillation.layer_map import layer_pairs
from kd_prune.distillation.losses import relation_kl
from kd_prune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HeadRelations:
    """Divergence of the relations between two of queries, keys and values (`relation_kl`).

    ``softmax(L Rᵀ / √d)`` per relation head, with L and R: (length, d). Queries and keys are the
    attention distributions, values and values the value relations of MiniLM. Where student and
    teacher differ in heads, the features of all heads are divided into equally many relation heads
    of both, whose width d may differ, as in MiniLMv2.

    Source: MiniLM (arXiv 2002.10957); MiniLMv2 (arXiv 2012.15828).

    Args:
        weight: Coefficient of the term.
        left: ``queries``, ``keys`` or ``values``.
        right: Likewise.
        heads: Relation heads; None: the teacher's heads, or as many of them as divide the student's
            width.
        layer_map: Student layer → teacher layer, from 1 on; None: the last to the last. The losses
            of several layers are added.

    Raises:
        ConfigError: A name is unknown.
    """

    weight: float = 1.0
    left: str = "queries"
    right: str = "keys"
    heads: int | None = None
    layer_map: Mapping[int, int] | None = None
    needs_teacher = True

    def __post_init__(self) -> None:
        for side in ("left", "right"):
            if (name := getattr(self, side)) not in HEADS:
                raise ConfigError(side, name, f"expected one of {', '.join(sorted(HEADS))}")
        if self.heads is not None and self.heads < 1:
            raise ConfigError("heads", self.heads, "expected at least 1")

    @property
    def requires(self) -> Collection[str]:
        """Kinds of activations that the term reads."""
        return frozenset({self.left, self.right})

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Compute the loss, a scalar.

        Raises:
            ConfigError: `heads` does not divide a width, or `layer_map` does not fit.
        """
        ours, theirs = getattr(student, self.left), getattr(teacher, self.left)
        heads = self.heads or math.gcd(_width(ours[0]), theirs[0].shape[1])
        layer_map = {len(ours): len(theirs)} if self.layer_map is None else self.layer_map
        losses = []
        for i, j in layer_pairs(len(ours), len(theirs), layer_map):
            if not (i and j):
                raise ConfigError(
                    "layer_map", layer_map, "0, the embeddings, has no heads", "begin with 1"
                )
            s, t = self._scores(student, i, heads), self._scores(teacher, j, heads)
            losses.append(relation_kl(s, t, batch["attention_mask"]))
        return torch.stack(losses).sum()

    def _scores(self, model: Activations, layer: int, heads: int) -> Tensor:
        """Return ``L Rᵀ / √d``, (batch, relation heads, length, length)."""
        left, right = (getattr(model, side)[layer - 1] for side in (self.left, self.right))
        if _width(left) % heads:
            raise ConfigError(
                "heads", heads, f"does not divide {_width(left)} features", "take a common divisor"
            )
        left, right = divided(left, heads), divided(right, heads)
        return torch.matmul(left, right.transpose(2, 3)) / math.sqrt(left.shape[-1])


def divided(features: Tensor, heads: int) -> Tensor:
    """Divide the features of all heads into another number of heads.

    Args:
        features: (batch, heads before, length, width of a head).
        heads: Divisor of all heads' width together.

    Returns:
        (batch, heads, length, width of a relation head).
    """
    batch, _, length, _ = features.shape
    return features.transpose(1, 2).reshape(batch, length, heads, -1).transpose(1, 2)


def _width(features: Tensor) -> int:
    return features.shape[1] * features.shape[3]
