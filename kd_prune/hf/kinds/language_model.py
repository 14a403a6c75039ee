"""Language model: the next token of plain text, in both directions (ELMo)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForPreTraining, PreTrainedTokenizerBase

from kd_prune.distillation.activations import Activations, Batch
from kd_prune.hf.kinds.base import Collator, PaddingCollator
from kd_prune.hf.kinds.text import Text
from kd_prune.hf.masking import IGNORED
from kd_prune.metrics import masked_word_metrics


@dataclass(frozen=True)
class LanguageModel(Text):
    """Prediction of every token from those before it, and from those after it.

    Logits are (rows, length, 2, vocabulary): of the token after a position, and of that before it.

    Args:
        pack: Join successive texts and cut them into rows of `max_length` tokens.
    """

    pack: bool = True

    auto_model: ClassVar[Any] = AutoModelForPreTraining
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "perplexity")

    def collator(self, tokenizer: PreTrainedTokenizerBase, pad_to: int | None) -> Collator:
        """Return a collator that pads; labels are the tokens beside each token."""
        pad = PaddingCollator.of(tokenizer, pad_to)

        def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            batch = pad(rows)
            return batch | {"labels": neighbours(batch["input_ids"], batch["attention_mask"])}

        return collate

    def predict(self, outputs: Activations, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of all predicted tokens, (tokens, vocabulary), and the tokens."""
        chosen = batch["labels"] != IGNORED
        return outputs.logits[chosen].float(), batch["labels"][chosen]

    def hard_label_loss(self, outputs: Activations, batch: Batch) -> Tensor:
        """Compute cross-entropy, a mean over tokens and directions."""
        logits, tokens = self.predict(outputs, batch)
        return F.cross_entropy(logits, tokens) if len(tokens) else outputs.logits.sum() * 0.0

    def metric_collection(self, names: Sequence[str], num_outputs: int) -> MetricCollection:
        """Make `accuracy`, the share of tokens that are right, and `perplexity`."""
        return masked_word_metrics(names)


def neighbours(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the token after and that before each real token, (rows, length, 2); -100: none.

    >>> ids, mask = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 1, 1, 0]])
    >>> neighbours(ids, mask).tolist()
    [[[6, -100], [7, 5], [-100, 6], [-100, -100]]]
    """
    real = input_ids.masked_fill(attention_mask == 0, IGNORED)
    after = F.pad(real[:, 1:], (0, 1), value=IGNORED)
    before = F.pad(real[:, :-1], (1, 0), value=IGNORED)
    both = torch.stack([after, before], -1)
    return both.masked_fill((attention_mask == 0)[..., None], IGNORED)
