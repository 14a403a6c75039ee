"""Checks that a student and a teacher fit together."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune.errors import UNSET, ConfigError
from kd_prune.hf.kinds.base import TaskKind

PROBE = "The naïve FOX isn't 12.5 % sure, 北京 or (is it)?"


def check_vocabularies(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError unless both tokenizers have the same vocabulary and split text alike.

    The key of the error is ``path``, of the teacher.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        word = min(w for w in ours.keys() | theirs.keys() if ours.get(w) != theirs.get(w))
        raise ConfigError(
            "path",
            teacher.name_or_path,
            f"the teacher's vocabulary has {theirs.get(word)} for {word!r}, "
            f"the student's {ours.get(word)}",
            "take a teacher with the student's vocabulary",
        )
    ours, theirs = (tokens(PROBE, PROBE)["input_ids"] for tokens in (student, teacher))
    if ours != theirs:  # such as cased and uncased
        raise ConfigError(
            "path",
            teacher.name_or_path,
            f"the teacher's tokenizer makes {theirs} of {PROBE!r}, the student's {ours}",
            "take a teacher that reads texts as the student does",
        )


def check_pair(student: PreTrainedModel, teacher: PreTrainedModel, kind: TaskKind) -> None:
    """Raise ConfigError unless both models have equal numbers of token ids and of outputs.

    The key of the error is ``path``, of the teacher.
    """
    compared = {"vocabulary": "vocab_size"}
    if kind.uses_num_labels:
        compared["number of labels"] = "num_labels"
    for name, key in compared.items():
        ours, theirs = getattr(student.config, key), getattr(teacher.config, key)
        if ours != theirs:
            raise ConfigError(
                "path",
                teacher.name_or_path or UNSET,
                f"the teacher's {name} is {theirs}, the student's {ours}",
                "take a teacher that was fine-tuned from the same family on the same task",
            )
