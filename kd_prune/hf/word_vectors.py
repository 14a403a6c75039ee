"""Word vectors: the nearest words of a word, from a GloVe-format file or a model's embeddings."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune.errors import ConfigError

WORD = re.compile(r"(?<![^\W_])[A-Za-z]+(?![^\W_])")
"""A word that may be replaced: ASCII letters without a letter or digit beside them."""
MOST_WORDS = 100_000
MARKERS = ("Ġ", "▁")
"""What vocabularies put before a piece that begins a word, if not ``##`` before all others."""


@dataclass(frozen=True)
class WordVectors:
    """Vectors of words, each of length 1.

    Args:
        words: The words, each once.
        matrix: Their vectors, (words, d).
    """

    words: Sequence[str]
    matrix: Tensor

    @classmethod
    def read(cls, path: str, most: int = MOST_WORDS) -> WordVectors:
        """Read the first words of a text file with a word and its vector per line, as GloVe's.

        The file may be compressed (``.gz``), and may begin with a line of two numbers (word2vec).

        Raises:
            ConfigError: There is no such file, or it holds something else.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise ConfigError("vectors", path, "there is no such file", "name a file, or null")
        opened = gzip.open if file.suffix == ".gz" else Path.open
        try:
            with cast("IO[str]", opened(file, "rt", encoding="utf-8")) as lines:
                vectors = read_vectors(lines, path, most)
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0]
            expected = f"cannot be read as text ({reason})"
            raise ConfigError("vectors", path, expected, "unpack it, or name another") from error
        if not vectors:
            raise ConfigError("vectors", path, "the file is empty", "name another, or null")
        matrix = torch.from_numpy(np.stack(list(vectors.values())))
        return cls(tuple(vectors), scaled(matrix))

    @classmethod
    def of_model(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> WordVectors:
        """Take the input embeddings of the tokens that are whole words."""
        table = whole_words(tokenizer)
        ids: dict[str, int] = {}
        for i, word in enumerate(table):
            if word and WORD.fullmatch(word):
                ids.setdefault(word, i)
        rows = torch.tensor(list(ids.values()), dtype=torch.long)
        return cls(tuple(ids), scaled(input_embeddings(model)[rows]))

    def nearest(
        self, vectors: Tensor, words: Sequence[str], count: int, device: torch.device
    ) -> list[list[str]]:
        """Return the `count` words nearest to each vector by cosine, without the word itself.

        Args:
            vectors: (n, d), of any length.
            words: The n words that the vectors belong to.
            count: Number of words.
            device: Device to compute on.
        """
        found: list[list[str]] = []
        matrix, count_plus = self.matrix.to(device), min(count + 1, len(self.words))
        for start in range(0, len(words), 256):
            similar = vectors[start : start + 256].to(device) @ matrix.T
            for word, ids in zip(
                words[start : start + 256], similar.topk(count_plus).indices.tolist(), strict=True
            ):
                others = (self.words[i] for i in ids)
                found.append([other for other in others if other.lower() != word.lower()][:count])
        return found


def read_vectors(lines: Iterable[str], path: str, most: int) -> dict[str, np.ndarray]:
    """Read word → vector of the first `most` words; `path` is for errors.

    Raises:
        ConfigError: A line is no word with a vector.
    """
    vectors: dict[str, np.ndarray] = {}
    width = 0
    for number, line in enumerate(lines):
        parts = line.rstrip().split(" ")
        if number == 0 and len(parts) == 2:
            continue
        width = width or len(parts) - 1
        try:  # a word may hold blanks
            vector = np.asarray(parts[-width:], dtype=np.float32)
        except ValueError:
            vector = np.empty(0, dtype=np.float32)
        if width < 1 or len(vector) != width or len(parts) <= width:
            raise ConfigError(
                "vectors",
                path,
                f"line {number + 1} is no word with a vector",
                "expected a word and its numbers per line, separated by blanks",
            )
        vectors.setdefault(" ".join(parts[:-width]), vector)
        if len(vectors) == most:
            break
    return vectors


def scaled(matrix: Tensor) -> Tensor:
    """Scale rows to length 1; rows of zeros stay."""
    return torch.nn.functional.normalize(matrix, dim=-1)


def input_embeddings(model: PreTrainedModel) -> Tensor:
    """Return a copy of the model's input embeddings on the CPU, (tokens, d)."""
    table: Any = model.get_input_embeddings()
    weight: Tensor = table.weight.detach().float().cpu()
    return weight


def whole_words(tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """Return the word that each token stands for alone; None for parts of words and special ones.

    In vocabularies of WordPiece parts begin with ``##``; in others words begin with a marker.
    """
    ids = tokenizer.get_vocab()
    marked = tuple(marker for marker in MARKERS if any(f"{marker}{one}" in ids for one in "aeit"))
    table: list[str | None] = [None] * (max(ids.values()) + 1)
    special = set(tokenizer.all_special_ids)
    for token, i in ids.items():
        part = not token.startswith(marked) if marked else token.startswith("##")
        if i not in special and not part:
            table[i] = tokenizer.convert_tokens_to_string([token]).strip() or None
    return table
