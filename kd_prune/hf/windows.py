"""Windows: a question with overlapping parts of a long context, as rows of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kd_prune.errors import ConfigError
from kd_prune.hf.squad import code_points

NOT_CONTEXT = -1
"""Offset of a token that is no part of the context, and fill of code points."""


def check_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError for a tokenizer that does not tell where in a text its tokens lie."""
    if not tokenizer.is_fast:
        raise ConfigError(
            "kind",
            "question_answering",
            f"{type(tokenizer).__name__} does not tell where in a text its tokens lie",
            "take a model with a fast tokenizer (tokenizer.json)",
        )


def first_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    """Cut every text off after its first `count` tokens."""
    stripped = [text.lstrip() for text in texts]
    encoded = tokenizer(stripped, add_special_tokens=False, return_offsets_mapping=True)
    ends = [offsets[count - 1][1] if len(offsets) > count else None for offsets in encoded[OFFSETS]]
    return [text[:end] for text, end in zip(stripped, ends, strict=True)]


OFFSETS = "offset_mapping"


def window_rows(
    questions: Sequence[str],
    contexts: Sequence[str],
    targets: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    doc_stride: int,
    segments: bool,
) -> dict[str, list[Any]]:
    """Return one row of token columns per window.

    ``labels`` are the positions of the answer's first and last token, and twice the null position
    (the tokenizer's CLS token, else 0) in a window that does not hold the whole answer. Rows whose
    target has ``answers`` get what predictions are made of: ``offsets`` (first and last + 1
    character of every token in the window's text, `NOT_CONTEXT` elsewhere), ``null_position``,
    ``question`` (its index), ``context`` (the window's text) and ``answers``.

    Args:
        questions: The questions.
        contexts: The texts that hold the answers.
        targets: Per question, ``start`` and ``end`` of its answer in the context (-1: no answer),
            its ``question`` index and its ``answers``, or None there.
        tokenizer: A tokenizer that gives offsets.
        max_length: Longest window in tokens, question included.
        doc_stride: Tokens that successive windows share.
        segments: Whether to return ``token_type_ids``.
    """
    encoded = tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=segments,
    )
    samples, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop(OFFSETS)
    rows: dict[str, list[Any]] = {**encoded, "labels": []}
    for i, sample in enumerate(samples):
        target, ids = targets[sample], encoded["input_ids"][i]
        null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        inside = [sequence == 1 for sequence in encoded.sequence_ids(i)]
        rows["labels"].append(answer_tokens(offsets[i], inside, target, null))
        if target["answers"] is None:
            continue
        spans = [span for span, held in zip(offsets[i], inside, strict=True) if held]
        begin, end = (spans[0][0], spans[-1][1]) if spans else (0, 0)
        further = {
            "offsets": [
                [first - begin, last - begin] if held else [NOT_CONTEXT, NOT_CONTEXT]
                for (first, last), held in zip(offsets[i], inside, strict=True)
            ],
            "null_position": null,
            "question": target["question"],
            "context": contexts[sample][begin:end],
            "answers": target["answers"] or [""],  # an empty list alone would have no type
        }
        for name, value in further.items():
            rows.setdefault(name, []).append(value)
    return rows


def answer_tokens(
    offsets: Sequence[tuple[int, int]],
    inside: Sequence[bool],
    target: Mapping[str, Any],
    null: int,
) -> list[int]:
    """Return the first and the last token of the answer, or twice `null` if it is not all there.

    Args:
        offsets: First and last + 1 character of every token.
        inside: Whether a token belongs to the context.
        target: ``start`` and ``end`` of the answer; -1: there is none.
        null: The null position.
    """
    start, end = target["start"], target["end"]
    context = [i for i, held in enumerate(inside) if held]
    if start < 0 or not context:
        return [null, null]
    if offsets[context[0]][0] > start or offsets[context[-1]][1] < end:
        return [null, null]
    touched = [i for i in context if offsets[i][0] < end and offsets[i][1] > start]
    return [touched[0], touched[-1]] if touched else [null, null]


@dataclass(frozen=True)
class WindowCollator:
    """Pads windows to a batch; texts become code points, filled up with `NOT_CONTEXT`."""

    tokenizer: PreTrainedTokenizerBase
    pad_to: int | None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the batch."""
        names = [name for name in self.tokenizer.model_input_names if name in rows[0]]
        names += [name for name in ("token_type_ids",) if name in rows[0] and name not in names]
        batch: dict[str, Tensor] = dict(
            self.tokenizer.pad(
                [{name: row[name] for name in names} for row in rows],
                padding="max_length" if self.pad_to else "longest",
                max_length=self.pad_to,
                return_tensors="pt",
            )
        )
        length = batch["input_ids"].shape[1]
        left = self.tokenizer.padding_side == "left"
        shifts = torch.tensor([length - len(row["input_ids"]) if left else 0 for row in rows])
        batch["labels"] = torch.tensor([row["labels"] for row in rows]) + shifts[:, None]
        if "offsets" not in rows[0]:
            return batch
        offsets = torch.full((len(rows), length, 2), NOT_CONTEXT)
        for i, row in enumerate(rows):
            first = int(shifts[i])
            offsets[i, first : first + len(row["offsets"])] = torch.tensor(row["offsets"])
        batch["offsets"] = offsets
        batch["null_position"] = torch.tensor([row["null_position"] for row in rows]) + shifts
        batch["question"] = torch.tensor([row["question"] for row in rows])
        batch["context"] = padded([code_points(row["context"]) for row in rows])
        most = max(len(row["answers"]) for row in rows)
        answers = [[*row["answers"], *[""] * (most - len(row["answers"]))] for row in rows]
        points = padded([code_points(answer) for texts in answers for answer in texts])
        batch["answers"] = points.reshape(len(rows), most, points.shape[-1])
        return batch


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of numbers as a matrix, filled up with `NOT_CONTEXT`."""
    matrix = torch.full((len(rows), max(map(len, rows), default=0)), NOT_CONTEXT)
    for i, row in enumerate(rows):
        matrix[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return matrix


def best_spans(
    logits: Tensor, offsets: Tensor, *, n_best: int, max_answer_length: int
) -> tuple[Tensor, Tensor]:
    """Find the span of context tokens with the highest score in each window.

    The score of a span is the start logit of its first token plus the end logit of its last.

    Args:
        logits: (windows, 2, length): start and end logits.
        offsets: (windows, length, 2), `NOT_CONTEXT` for tokens that are no part of the context.
        n_best: Starts, and ends, with the highest logits that are paired.
        max_answer_length: Longest span in tokens.

    Returns:
        Scores, (windows,), -inf where there is no span, and first and last + 1 character of the
        spans, (windows, 2), 0 where there is none.
    """
    allowed = (offsets[..., 0] >= 0)[:, None]
    scores = logits.float().masked_fill(~allowed, -torch.inf)
    count = min(n_best, logits.shape[-1])
    (starts, ends), positions = scores.topk(count).values.unbind(1), scores.topk(count).indices
    first, last = positions.unbind(1)
    lengths = last[:, None, :] - first[:, :, None] + 1
    totals = starts[:, :, None] + ends[:, None, :]
    totals = totals.masked_fill((lengths < 1) | (lengths > max_answer_length), -torch.inf)
    best = totals.flatten(1).max(-1)
    windows = torch.arange(len(logits), device=logits.device)
    start = offsets[windows, first[windows, best.indices // count], 0]
    end = offsets[windows, last[windows, best.indices % count], 1]
    found = best.values > -torch.inf
    return best.values, torch.stack([start, end], -1) * found[:, None]
