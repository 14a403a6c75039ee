"""Masked words: tokens hidden in plain text, which the model predicts from the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForMaskedLM, BatchEncoding, PreTrainedTokenizerBase

from kd_prune.distillation.activations import Activations, Batch
from kd_prune.errors import ConfigError
from kd_prune.hf.forward_pass import LOGIT_POSITIONS
from kd_prune.hf.kinds.base import Collator, TaskFields
from kd_prune.hf.kinds.text import Text, cut, room, special_tokens
from kd_prune.hf.masking import IGNORED, STARTS, MaskingCollator
from kd_prune.metrics import masked_word_metrics


@dataclass(frozen=True)
class MaskedWords(Text):
    """Prediction of masked tokens of text without labels (BERT's pre-training, arXiv 1810.04805).

    In every row `share` of the tokens are chosen, anew in every epoch; of these `mask_share`
    become the mask token, `random_share` a random token, and the others stay as they are. The
    validation rows have the same masks in every epoch and run.

    Args:
        pack: Join successive texts and cut them into rows of `max_length` tokens.
        share: Share of a row's tokens that are chosen, at least one token.
        whole_words: Choose all pieces of a word together; needs a fast tokenizer.
        mask_share: Share of the chosen tokens that become the mask token.
        random_share: Share of the chosen tokens that become a token of the vocabulary at random.
        every_token: Compute logits of every real token, for soft targets on all of them, as
            DistilBERT's; False: of the chosen tokens alone, which costs a sixth.

    Raises:
        ConfigError: A share is out of its range.
    """

    pack: bool = True
    share: float = 0.15
    whole_words: bool = False
    mask_share: float = 0.8
    random_share: float = 0.1
    every_token: bool = False

    auto_model: ClassVar[Any] = AutoModelForMaskedLM
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "perplexity")

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ConfigError("share", self.share, "expected a fraction in (0, 1)")
        for key in ("mask_share", "random_share"):
            if not 0.0 <= (value := getattr(self, key)) <= 1.0:
                raise ConfigError(key, value, "expected a fraction in [0, 1]")
        if self.mask_share + self.random_share > 1.0 + 1e-9:
            raise ConfigError(
                "random_share", self.random_share, f"with mask_share={self.mask_share} above 1"
            )

    def encode(
        self,
        task: TaskFields,
        tokenizer: PreTrainedTokenizerBase,
        rows: Mapping[str, list[Any]],
        segments: bool,
    ) -> dict[str, list[Any]]:
        """Tokenise as `Text` does; with `whole_words` also mark the tokens that begin a word.

        Raises:
            ConfigError: The tokenizer has no mask token, or does not tell words apart.
        """
        if tokenizer.mask_token_id is None:
            raise ConfigError(
                "kind",
                expected="the model's tokenizer has no mask token",
                hint="take a model that was trained on masked words, or task/kind=text",
            )
        if self.whole_words and not tokenizer.is_fast:
            raise ConfigError(
                "kind.whole_words",
                True,
                "the model's tokenizer does not say which tokens are pieces of one word",
                "set it to false",
            )
        encoded = super().encode(task, tokenizer, rows, segments)
        if self.whole_words:
            encoded[STARTS] = self._word_starts(task, tokenizer, rows)
        return encoded

    def _word_starts(
        self, task: TaskFields, tokenizer: PreTrainedTokenizerBase, rows: Mapping[str, list[Any]]
    ) -> list[list[int]]:
        """Return, for the rows of `encode`, 1 for a token that begins a word and 0 for others."""
        texts = [[text or "" for text in rows[column]] for column in task.text]
        if not self.pack:
            return starts_of(tokenizer(*texts, truncation=True, max_length=task.max_length))
        if not (given := [text for text in texts[0] if text]):
            return []
        found = starts_of(tokenizer(given, add_special_tokens=False, verbose=False))
        start, end = ([1] * len(ids) for ids in special_tokens(tokenizer))
        separator = [] if tokenizer.sep_token_id is None else [1]
        pieces = cut(found, room(tokenizer, task.max_length), separator)
        return [[*start, *piece, *end] for piece in pieces]

    def collator(self, tokenizer: PreTrainedTokenizerBase, pad_to: int | None) -> Collator:
        """Return a collator that pads and masks; labels of tokens not chosen are -100."""
        return MaskingCollator.of(
            tokenizer,
            pad_to,
            share=self.share,
            mask_share=self.mask_share,
            random_share=self.random_share,
            every_token=self.every_token,
        )

    def predict(self, outputs: Activations, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits of the chosen tokens, (chosen, vocabulary), and the tokens themselves."""
        targets = _targets(batch)
        chosen = targets != IGNORED
        return outputs.logits[chosen].float(), targets[chosen]

    def hard_label_loss(self, outputs: Activations, batch: Batch) -> Tensor:
        """Compute cross-entropy, a mean over the chosen tokens of all rows."""
        logits, targets = self.predict(outputs, batch)
        return F.cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))

    def metric_collection(self, names: Sequence[str], num_outputs: int) -> MetricCollection:
        """Make `accuracy`, the share of chosen tokens that are right, and `perplexity`."""
        return masked_word_metrics(names)


def _targets(batch: Batch) -> Tensor:
    """Return the labels of the tokens that the model computes logits of, in its order."""
    labels, positions = batch["labels"], batch[LOGIT_POSITIONS]
    return labels[positions.bool()].to(torch.int64)


def starts_of(encoded: BatchEncoding) -> list[list[int]]:
    """Return per token of each row whether it begins a word, 1, or continues one, 0.

    Special tokens belong to no word and count as beginnings.
    """
    found = []
    for row in range(len(encoded["input_ids"])):
        words = encoded.word_ids(row)
        before = [None, *words[:-1]]
        pairs = zip(words, before, strict=True)
        found.append([int(word is None or word != last) for word, last in pairs])
    return found
