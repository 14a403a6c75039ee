"""Augmentation of training texts as in TinyBERT: copies with some words replaced.

Source: TinyBERT (arXiv 1909.10351) algorithm 1 and its code. As there: of a text and its N copies
duplicates are dropped; a word of one token is masked in front of the unmasked text, so that the
word itself is often among the M likeliest; parts of words among these M are dropped and not made
up for, so a word may have fewer candidates; function words and what holds anything but ASCII
letters are never replaced; of a pair each side is augmented alone.

Unlike there: a pair's other side stays the original (TinyBERT leaves the first side at its last
copy while the second is augmented, and writes the original pair only once by that accident); the
rest of a text keeps its case and its blanks; special tokens are no candidates; copies have no
label, so the loss on hard labels skips them (TinyBERT copies labels, and reads them for
regression); copies depend on the seed and the row alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value

from kd_prune.errors import ConfigError
from kd_prune.hf.columns import column_values
from kd_prune.hf.encoders import PretrainedEncoder
from kd_prune.hf.fingerprint import model_fingerprint, tokenizer_state
from kd_prune.hf.kinds import MaskedWords, Text
from kd_prune.hf.replacements import Replacements
from kd_prune.hf.row_cache import cached_rows
from kd_prune.hf.word_vectors import WordVectors, input_embeddings
from kd_prune.source_hash import source_hash

log = logging.getLogger(__name__)

COPIES = {
    "cola": 30,
    "mrpc": 30,
    "rte": 30,
    "stsb": 30,
    "sst2": 20,
    "qnli": 20,
    "mnli": 10,
    "qqp": 10,
}
"""Task → copies per text, as in TinyBERT's code; its paper (version 5) has 20 for all."""
OTHER_COPIES = 20
TEXTS_PER_BATCH = 256
WORDS = Features(
    {
        "text": Value("string"),
        "words": List(
            {
                "start": Value("int32"),
                "end": Value("int32"),
                "candidates": List(Value("string")),
            }
        ),
    }
)
MASKED_WORDS = MaskedWords()


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Settings of augmented training texts.

    Args:
        probability: Probability that a word of a copy is replaced.
        candidates: Most words that may replace a word.
        copies: Copies per text, before duplicates are dropped; None: `COPIES` of the task.
        model: Masked language model for words of one token: a folder or hub id. None: the task's
            own encoder, if its files hold a head for masked words; else word vectors replace all
            words.
        vectors: GloVe-format file of word vectors for the other words; None: the input embeddings
            of the model.
        seed: Seed of the copies.

    Raises:
        ConfigError: A number is out of its range.
    """

    probability: float = 0.4
    candidates: int = 15
    copies: int | None = None
    model: str | None = None
    vectors: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.probability <= 1.0:
            raise ConfigError("probability", self.probability, "expected a fraction in (0, 1]")
        for key in ("candidates", "copies"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ConfigError(key, value, "expected at least 1")
        if self.seed < 0:
            raise ConfigError("seed", self.seed, "expected at least 0")

    def copies_of(self, task: str) -> int:
        """Return the copies per text of a task."""
        return self.copies or COPIES.get(task, OTHER_COPIES)


def augmented_rows(
    settings: Augmentation,
    texts: Dataset,
    *,
    task: str,
    encoder: PretrainedEncoder,
    cache: Path,
) -> Dataset:
    """Return the copies of rows of texts, without the rows themselves; kept in `cache`.

    Args:
        settings: The settings.
        texts: Text columns, one or two.
        task: Name of the task.
        encoder: The task's own encoder.
        cache: Cache folder.

    Raises:
        ConfigError: The model or the vectors cannot be read, or no word can be replaced.
    """
    copies, columns = settings.copies_of(task), texts.column_names
    sides = [[text or "" for text in column_values(texts, column)] for column in columns]
    unique = list(dict.fromkeys(text for side in sides for text in side))
    replacements, source = load_replacements(settings, encoder)
    words_key = key_of(source, settings.candidates, unique)
    key = key_of(words_key, copies, settings.probability, settings.seed, columns, sides)
    words: dict[str, list[dict[str, Any]]] = {}

    def find(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {"words": [list(map(asdict, words)) for words in replacements.find(batch["text"])]}

    def copied(batch: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[str]]:
        rows: dict[str, list[str]] = {column: [] for column in columns}
        for row, *given in zip(indices, *(batch[column] for column in columns), strict=True):
            for side, column in enumerate(columns):
                rng = np.random.default_rng((settings.seed, row, side))
                text = given[side] or ""
                made = copies_of_text(text, words[text], copies, settings.probability, rng)
                for other, text_of_other in zip(columns, given, strict=True):
                    rows[other] += made if other == column else [text_of_other or ""] * len(made)
        return rows

    def make_words() -> Dataset:
        return Dataset.from_dict({"text": unique}).map(
            find,
            batched=True,
            batch_size=TEXTS_PER_BATCH,
            features=WORDS,
            keep_in_memory=True,
            new_fingerprint=words_key,
            desc="finding words",
        )

    def make_rows() -> Dataset:
        nonlocal words
        found = cached_rows(cache / "replacements" / words_key, make_words)
        words = dict(zip(found["text"], found["words"], strict=True))
        rows = texts.map(
            copied,
            batched=True,
            with_indices=True,
            remove_columns=columns,
            features=Features(dict.fromkeys(columns, Value("string"))),
            keep_in_memory=True,
            new_fingerprint=key,
            desc="augmenting",
        )
        if not len(rows):
            raise ConfigError(
                "copies",
                copies,
                "no word of the training texts can be replaced: only those of ASCII letters "
                "that are no function words can",
                "leave augment out",
            )
        return rows

    return cached_rows(cache / "augmented" / key, make_rows)


def load_replacements(
    settings: Augmentation, encoder: PretrainedEncoder
) -> tuple[Replacements, str]:
    """Load the model and the word vectors; return them with a hash of both.

    Raises:
        ConfigError: One cannot be read, or a model that is named has no head for masked words.
    """
    source = PretrainedEncoder(path=settings.model) if settings.model else encoder
    masked = True
    try:
        source.fine_tuned_config(MASKED_WORDS, "model")
    except ConfigError:
        if settings.model:
            raise
        masked = False
        log.warning(
            "%s has no head for masked words, so word vectors replace all words; "
            "task.augment.model names a model that has one",
            encoder.path,
        )
    tokenizer = source.tokenizer(key="model")
    if not tokenizer.is_fast:
        raise ConfigError(
            "model",
            source.path,
            f"{type(tokenizer).__name__} does not tell where in a text its tokens lie",
            "take a model with a fast tokenizer (tokenizer.json)",
        )
    kind = MASKED_WORDS if masked else Text()
    model = source.load(kind=kind, num_outputs=0, head=masked, key="model")
    if settings.vectors:
        vectors, embeddings = WordVectors.read(settings.vectors), None
    else:
        vectors, embeddings = WordVectors.of_model(model, tokenizer), input_embeddings(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_device: Any = model
    on_device.to(device)
    found = Replacements(
        tokenizer=tokenizer,
        vectors=vectors,
        embeddings=embeddings,
        model=on_device if masked else None,
        count=settings.candidates,
        device=device,
    )
    numbers = hashlib.sha256(vectors.matrix.numpy().tobytes()).hexdigest()
    words = tokenizer_state(tokenizer), vectors.words, numbers
    key = key_of(source_hash("hf"), model_fingerprint(model, tokenizer), masked, *words)
    return found, key


def copies_of_text(
    text: str,
    words: Sequence[Mapping[str, Any]],
    copies: int,
    probability: float,
    rng: np.random.Generator,
) -> list[str]:
    """Return different copies of a text, at most `copies`, in which words are replaced at random.

    Args:
        text: The text.
        words: ``start``, ``end`` and ``candidates`` of its words, in order.
        copies: Copies to draw.
        probability: Probability that a word is replaced.
        rng: Source of randomness.
    """
    found = {text: None}
    draws, picks = rng.random((2, copies, len(words)))
    for draw, pick in zip(draws, picks, strict=True):
        parts, last = [], 0
        for word, drawn, picked in zip(words, draw, pick, strict=True):
            if drawn < probability:
                chosen = word["candidates"][int(picked * len(word["candidates"]))]
                parts += [text[last : word["start"]], chosen]
                last = word["end"]
        found["".join([*parts, text[last:]])] = None
    return list(found)[1:]


def key_of(*values: Any) -> str:
    """Hash plain values to 32 hexadecimal digits."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:32]
