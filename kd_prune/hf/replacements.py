"""Replacements of words: likely words for a masked one, or the nearest word vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune.hf.forward_pass import LOGIT_POSITIONS, SEGMENTS, forward
from kd_prune.hf.layers import max_positions
from kd_prune.hf.word_vectors import WORD, WordVectors, whole_words

FUNCTION_WORDS = """
a about above after again against ain all am an and any are aren as at be because been before being
below between both but by can couldn d did didn do does doesn doing don down during each few for
from further had hadn has hasn have haven having he her here hers herself him himself his i if in
into is isn it its itself just ll m ma me mightn more most mustn my myself needn no nor not now o of
off on once only or other our ours ourselves out over own re s same shan she should shouldn so some
such t than that the their theirs them themselves then there these they this those through to too
under until up ve very was wasn we were weren while will with won wouldn y you your yours yourself
yourselves
"""
STOP_WORDS = frozenset(FUNCTION_WORDS.split())
"""English words that are never replaced: those of TinyBERT, at whose apostrophes texts are cut."""
TOKENS_PER_BATCH = 16_384
LONGEST = 512
LOGITS = frozenset({"logits"})


@dataclass(frozen=True)
class Word:
    """A word of a text and what may replace it.

    Attributes:
        start: First character.
        end: Last character + 1.
        candidates: The words.
    """

    start: int
    end: int
    candidates: list[str]


@dataclass(frozen=True)
class Replacements:
    """Finds replacements for the words of texts.

    Args:
        tokenizer: A tokenizer that gives offsets.
        vectors: Word vectors.
        embeddings: Input embeddings, (tokens, d): a word without a vector has the mean of its
            tokens'. None: such a word is not replaced.
        model: Masked language model for words of one token; None: word vectors for all words.
        count: Most candidates per word.
        device: Device to compute on.
    """

    tokenizer: PreTrainedTokenizerBase
    vectors: WordVectors
    embeddings: Tensor | None
    model: PreTrainedModel | None
    count: int
    device: torch.device

    def find(self, texts: Sequence[str]) -> list[list[Word]]:
        """Return the words of each text that have candidates, in order."""
        spans = [
            [
                (found.start(), found.end())
                for found in WORD.finditer(text)
                if found[0].lower() not in STOP_WORDS
            ]
            for text in texts
        ]
        known: list[dict[tuple[int, int], list[str]]] = [{} for _ in texts]
        if self.model is not None:
            self._predict_masked(texts, spans, known)
        self._find_nearest(texts, spans, known)
        return [
            [Word(*span, found[span]) for span in text_spans if found.get(span)]
            for text_spans, found in zip(spans, known, strict=True)
        ]

    def _predict_masked(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[tuple[int, int]]],
        known: Sequence[dict[tuple[int, int], list[str]]],
    ) -> None:
        """Add the likeliest words at the place of every word of one token."""
        table = whole_words(self.tokenizer)
        masked = sorted(self._masked(texts, spans), key=lambda one: len(one.ids))
        for rows in batches(masked):
            tokens = self._likeliest(rows)
            for row, ids in zip(rows, tokens, strict=True):
                words = (table[i] if i < len(table) else None for i in ids)
                known[row.text][row.span] = [word for word in words if word]

    def _masked(
        self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> Iterator[Masked]:
        """Yield every word of one token, masked in its text, which follows once more unmasked."""
        assert self.model is not None  # noqa: S101
        encoded = self.tokenizer(
            list(texts),
            list(texts),
            truncation=True,
            max_length=int(min(LONGEST, max_positions(self.model))),
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )
        for i, wanted in enumerate(spans):
            ids, segments = encoded["input_ids"][i], encoded["token_type_ids"][i]
            places = {
                span_without_blanks(texts[i], *offset): position
                for position, (offset, sequence) in enumerate(
                    zip(encoded["offset_mapping"][i], encoded.sequence_ids(i), strict=True)
                )
                if sequence == 0
            }
            for span in wanted:
                if span in places:
                    yield Masked(i, span, places[span], ids, segments)

    @torch.no_grad()
    def _likeliest(self, rows: Sequence[Masked]) -> list[list[int]]:
        """Return the ids of the likeliest tokens at each row's masked position."""
        model, width = self.model, max(len(row.ids) for row in rows)
        assert model is not None  # noqa: S101
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id or 0)
        mask, segments = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            segments[i, : len(row.ids)] = torch.tensor(row.segments)
            mask[i, : len(row.ids)] = 1
        masked = torch.zeros_like(ids, dtype=torch.bool)
        masked[torch.arange(len(rows)), torch.tensor([row.position for row in rows])] = True
        batch = {
            "input_ids": ids.masked_fill(masked, self.tokenizer.mask_token_id),
            "attention_mask": mask,
            SEGMENTS: segments,
            LOGIT_POSITIONS: masked,
        }
        batch = {name: one.to(self.device) for name, one in batch.items()}
        logits = forward(model, batch, LOGITS).logits
        found: list[list[int]] = logits.topk(min(self.count, logits.shape[-1])).indices.tolist()
        return found

    def _find_nearest(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[tuple[int, int]]],
        known: Sequence[dict[tuple[int, int], list[str]]],
    ) -> None:
        """Add the nearest words of the words that have no candidates yet."""
        open_words = {
            text[slice(*span)]: None
            for text, wanted, found in zip(texts, spans, known, strict=True)
            for span in wanted
            if span not in found
        }
        candidates = self.nearest(list(open_words))
        for text, wanted, found in zip(texts, spans, known, strict=True):
            for span in wanted:
                found.setdefault(span, candidates.get(text[slice(*span)], []))

    def nearest(self, words: Sequence[str]) -> dict[str, list[str]]:
        """Return word → nearest words, of the words that have a vector.

        The candidates of a capitalised word are capitalised.
        """
        place = {word: i for i, word in enumerate(self.vectors.words)}
        rows: dict[str, Tensor] = {}
        for word in words:
            at = place.get(word, place.get(word.lower()))
            if at is not None:
                rows[word] = self.vectors.matrix[at]
            elif self.embeddings is not None:
                pieces = self.tokenizer(word, add_special_tokens=False)["input_ids"]
                rows[word] = self.embeddings[torch.tensor(pieces)].mean(0)
        if not rows:
            return {}
        found = self.vectors.nearest(
            torch.stack(list(rows.values())), list(rows), self.count, self.device
        )
        return {
            word: [other.title() for other in others] if word.istitle() else others
            for word, others in zip(rows, found, strict=True)
        }


@dataclass(frozen=True)
class Masked:
    """A row of tokens with one word to mask.

    Attributes:
        text: Index of the text.
        span: Characters of the word.
        position: Token to mask.
        ids: The tokens.
        segments: 0 for the masked text, 1 for the text that follows.
    """

    text: int
    span: tuple[int, int]
    position: int
    ids: list[int]
    segments: list[int]


def span_without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a token's character offsets without the leading blanks that DeBERTa includes.

    >>> span_without_blanks("the plot", 3, 8), span_without_blanks("the plot", 4, 8)
    ((4, 8), (4, 8))
    """
    return end - len(text[start:end].lstrip()), end


def batches(rows: Sequence[Masked]) -> Iterator[list[Masked]]:
    """Cut rows, sorted by length, into batches of at most `TOKENS_PER_BATCH` tokens."""
    batch: list[Masked] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row.ids) > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
