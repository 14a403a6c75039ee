"""Dynamic masking: a collator that hides tokens, with random numbers of each row's own."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from kd_prune.hf.forward_pass import LOGIT_POSITIONS

IGNORED = -100
"""Label of a token that is not predicted."""
STARTS = "word_starts"
"""Token column: 1 where a word begins, 0 for its further pieces."""


@dataclass
class MaskingCollator:
    """Pads encoded rows to a batch and masks tokens of each.

    Which tokens of a row are masked depends on the row's tokens and on the numbers given to
    `reseed` alone: not on its batch, its process, or how often the run was resumed.

    Args:
        pad: Pads the token columns.
        share: Share of a row's tokens that are chosen.
        mask_share: Share of the chosen tokens that become the mask token.
        random_share: Share of the chosen tokens that become a random token.
        mask_id: The mask token.
        special_ids: Tokens that are never chosen; unknown words are among them.
        vocabulary: Number of tokens to draw random ones from.
        every_token: Whether the model computes logits of every real token.
        seed: Numbers that the masks depend on besides the rows.
    """

    pad: DataCollatorWithPadding
    share: float
    mask_share: float
    random_share: float
    mask_id: int
    special_ids: np.ndarray
    vocabulary: int
    every_token: bool
    seed: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, pad_to: int | None, **settings: Any
    ) -> MaskingCollator:
        """Make a collator that pads to `pad_to` tokens, or to the longest row of the batch."""
        return cls(
            pad=DataCollatorWithPadding(
                tokenizer, padding="max_length" if pad_to else "longest", max_length=pad_to
            ),
            mask_id=int(tokenizer.mask_token_id or 0),
            special_ids=np.asarray(tokenizer.all_special_ids),
            vocabulary=len(tokenizer),
            **settings,
        )

    def reseed(self, *seed: int) -> None:
        """Choose other tokens from now on, as training does in every epoch."""
        self.seed = seed

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the batch: masked ``input_ids``, ``labels`` and ``logit_positions``."""
        masked, labels = zip(*(self._masked(row) for row in rows), strict=True)
        columns = [{k: v for k, v in row.items() if k != STARTS} for row in rows]
        batch = dict(
            self.pad([row | {"input_ids": ids} for row, ids in zip(columns, masked, strict=True)])
        )
        real = batch["attention_mask"].bool()
        batch["labels"] = torch.full(real.shape, IGNORED, dtype=torch.int64)
        batch["labels"][real] = torch.from_numpy(np.concatenate(labels))
        batch[LOGIT_POSITIONS] = real if self.every_token else batch["labels"] != IGNORED
        return batch

    def _masked(self, row: dict[str, Any]) -> tuple[list[int], np.ndarray]:
        """Return the row's tokens with some masked, and its labels."""
        ids = np.asarray(row["input_ids"])
        random = np.random.default_rng((*self.seed, zlib.crc32(ids.astype("<i4").tobytes())))
        starts = np.asarray(row.get(STARTS, np.ones_like(ids)))
        chosen = choose_tokens(~np.isin(ids, self.special_ids), starts, self.share, random)
        labels = np.full(len(ids), IGNORED, dtype=np.int64)
        labels[chosen] = ids[chosen]
        fate = random.random(len(chosen))
        masked = ids.copy()
        masked[chosen[fate < self.mask_share]] = self.mask_id
        replaced = chosen[(fate >= self.mask_share) & (fate < self.mask_share + self.random_share)]
        masked[replaced] = random.integers(self.vocabulary, size=len(replaced))
        return masked.tolist(), labels


def choose_tokens(
    allowed: np.ndarray, starts: np.ndarray, share: float, random: np.random.Generator
) -> np.ndarray:
    """Choose words in random order until `share` of the allowed tokens, at least one, is reached.

    A word that would exceed the number is passed over, unless it is the first.

    Args:
        allowed: Whether a token may be chosen, (length,).
        starts: Whether a token begins a word, (length,).
        share: Share of the allowed tokens to choose.
        random: Generator of the order.

    Returns:
        Ascending positions of the chosen tokens.

    >>> choose_tokens(np.ones(5, bool), np.array([1, 0, 0, 0, 0]), 0.2, np.random.default_rng(0))
    array([0, 1, 2, 3, 4])
    """
    positions = np.flatnonzero(allowed)
    if not len(positions):
        return positions
    wanted = max(1, round(share * len(positions)))
    # A special token ends a word too: what follows it begins one.
    begins = (starts[positions] != 0) | (np.diff(positions, prepend=-2) > 1)
    if begins.all():
        return np.sort(random.permutation(positions)[:wanted])
    words = np.split(positions, np.flatnonzero(begins)[1:])
    chosen: list[int] = []
    for i in random.permutation(len(words)):
        if not chosen or len(chosen) + len(words[i]) <= wanted:
            chosen += words[i].tolist()
        if len(chosen) >= wanted:
            break
    return np.sort(np.asarray(chosen))
