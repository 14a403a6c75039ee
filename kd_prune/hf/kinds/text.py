"""Text: rows without labels, for general distillation; the model has no head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModel, PreTrainedTokenizerBase

from kd_prune.distillation.activations import Activations, Batch
from kd_prune.errors import ConfigError
from kd_prune.hf.kinds.base import Collator, Labels, PaddingCollator, TaskFields, encode_texts


@dataclass(frozen=True)
class Text:
    """Text without labels, from which a student learns a teacher's hidden states and attention.

    Args:
        pack: Join successive texts, with the tokenizer's separator between them, and cut the
            stream into rows of `max_length` tokens: nothing is cut off and little is padding.
            False: one row per text, cut off at `max_length`.
    """

    pack: bool = False

    auto_model: ClassVar[Any] = AutoModel
    uses_num_labels: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ()
    missing_label: ClassVar[Any] = 0  # no row has a label

    def check(self, task: TaskFields) -> None:
        """Raise ConfigError if pairs of texts are to be packed."""
        if self.pack and len(task.text) > 1:
            raise ConfigError(
                "text", list(task.text), "pairs of texts cannot be packed", "set kind.pack to false"
            )

    def read_labels(self, task: TaskFields, splits: Mapping[str, Dataset]) -> Labels:
        """Return no labels for every split."""
        return Labels((), dict.fromkeys(splits))

    def num_outputs(self, names: Sequence[str]) -> int:
        """Return 0: the model has no head."""
        return 0

    def encode(
        self,
        task: TaskFields,
        tokenizer: PreTrainedTokenizerBase,
        rows: Mapping[str, list[Any]],
        segments: bool,
    ) -> dict[str, list[Any]]:
        """Tokenise with one row per text, or with the texts packed."""
        if not self.pack:
            return encode_texts(task, tokenizer, rows, segments)
        pieces = list(packed(rows[task.text[0]], tokenizer, task.max_length))
        return token_columns(pieces, segments)

    def collator(self, tokenizer: PreTrainedTokenizerBase, pad_to: int | None) -> Collator:
        """Return a collator that pads; there are no labels."""
        return PaddingCollator.of(tokenizer, pad_to)

    def predict(self, outputs: Activations, batch: Batch) -> tuple[Tensor, Tensor]:
        """Raise ConfigError: there is nothing to predict."""
        raise ConfigError(
            "metrics", expected="rows of kind text have no labels", hint="set it to []"
        )

    def hard_label_loss(self, outputs: Activations, batch: Batch) -> Tensor:
        """Raise ConfigError with an empty key, which the objective completes to the term's."""
        raise ConfigError(
            "",
            expected="rows of kind text have no labels to learn from",
            hint="set its weight to 0",
        )

    def metric_collection(self, names: Sequence[str], num_outputs: int) -> MetricCollection:
        """Return an empty collection."""
        return MetricCollection({})

    def model_config(self, names: Sequence[str]) -> dict[str, Any]:
        """Return no entries."""
        return {}


def token_columns(pieces: list[list[int]], segments: bool) -> dict[str, list[Any]]:
    """Return the token columns of rows of a single text each."""
    columns = {"input_ids": pieces, "attention_mask": [[1] * len(ids) for ids in pieces]}
    return columns | {"token_type_ids": [[0] * len(i) for i in pieces]} if segments else columns


def packed(
    texts: Sequence[str | None], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[list[int]]:
    """Yield the token ids of the joined texts in rows of `max_length`; the last may be shorter.

    Every row begins and ends with the special tokens that the tokenizer adds to a single text.
    """
    start, end = special_tokens(tokenizer)
    separator = [] if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
    size = room(tokenizer, max_length)
    if given := [text for text in texts if text]:
        # With verbose the tokenizer would warn of texts that are longer than the model's input.
        ids = tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"]
        for piece in cut(ids, size, separator):
            yield [*start, *piece, *end]


def room(tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Return the tokens of text that fit in a row of `max_length`.

    Raises:
        ConfigError: None do.
    """
    start, end = special_tokens(tokenizer)
    size = max_length - len(start) - len(end)
    if size < 1:
        raise ConfigError(
            "max_length", max_length, "leaves no room for text between the special tokens"
        )
    return size


def cut(
    sequences: Iterable[Sequence[int]], size: int, separator: Sequence[int]
) -> Iterator[list[int]]:
    """Join sequences with a separator and yield the result in parts of `size`; the last is shorter.

    >>> list(cut([[1, 2], [3, 4, 5]], 4, [0]))
    [[1, 2, 0, 3], [4, 5]]
    """
    stream: list[int] = []
    for sequence in sequences:
        stream += [*(separator if stream else []), *sequence]
        whole = len(stream) // size * size
        yield from (stream[i : i + size] for i in range(0, whole, size))
        stream = stream[whole:]
    if stream:
        yield stream


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a single text."""
    probe = "a"
    bare = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    full = list(tokenizer(probe)["input_ids"])
    for i in range(len(full) - len(bare) + 1):
        if full[i : i + len(bare)] == bare:
            return full[:i], full[i + len(bare) :]
    return [], []
