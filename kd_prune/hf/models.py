"""Hugging Face encoders: loading, what of them is pruned, what terms see of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kd_prune.distillation.activations import Activations, Batch
from kd_prune.hf.attention import tap_attention_scores
from kd_prune.pruning.scope import Scope

SEGMENTS = "token_type_ids"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A pre-trained encoder by folder or hub id.

    Args:
        path: Folder, or hub id.
        revision: Branch, tag or commit on the hub.
        scope: What may be pruned; None: the Linear weights of every encoder layer.
    """

    path: str
    revision: str | None = None
    scope: Scope | None = None

    def load(
        self, *, num_labels: int, head: bool = False, key: str = "model.path"
    ) -> PreTrainedModel:
        """The model in float32, with a new head unless the files hold one that fits.

        Args:
            num_labels: Outputs of the head.
            head: Whether the files must hold it.
            key: The option that named the path, for errors.

        Raises:
            ValueError: It cannot be reached or read, or its weights are not those of its config.
        """
        try:
            model: PreTrainedModel
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder_or_id(self.path),
                revision=self.revision or "main",
                num_labels=num_labels,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:  # each way to be broken raises a type of its own
            raise unreachable(key, self.path, error) from error
        anew = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
        if lacking := sorted(anew if head else filter(encoder_weight(model).match, anew)):
            raise ValueError(  # transformers would begin with random layers, and only log it
                f"{key}={self.path}: {lacking[0]} is missing or of another shape than "
                "config.json says; the weights are of another model"
            )
        return model

    def tokenizer(self, key: str = "model.path") -> PreTrainedTokenizerBase:
        """The tokenizer that comes with the model; `key` is the option that named the path.

        Raises:
            ValueError: It cannot be reached or read, or has no words.
        """
        try:
            path = folder_or_id(self.path)
            tokenizer = AutoTokenizer.from_pretrained(path, revision=self.revision or "main")
        except Exception as error:  # each way to be broken raises a type of its own
            raise unreachable(key, self.path, error) from error
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError(  # without its files transformers gives one that knows no word
                f"{key}={self.path}: no tokenizer comes with the model; save it there too "
                "(tokenizer.json, tokenizer_config.json)"
            )
        return tokenizer


def folder_or_id(path: str) -> str:
    """A folder with its ``~`` expanded; anything else may be an id of the hub, and stays."""
    folder = Path(path).expanduser()
    return str(folder) if folder.is_dir() else path


def unreachable(key: str, path: str, error: Exception) -> ValueError:
    """One line for whatever the hub or the disk said."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(": ")
    if Path(path).is_dir():
        return ValueError(
            f"{key}={path}: the folder cannot be read ({reason}); it has to hold config.json, "
            "weights and a tokenizer, as save_pretrained writes them"
        )
    if Path(path).is_file():
        return ValueError(f"{key}={path}: a file; pass the folder it is in, {key}=<folder>")
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:  # no id of the hub
        return ValueError(f"{key}={path}: there is no such folder; pass {key}=<folder>")
    return ValueError(
        f"{key}={path}: not a local folder, and not to be had from the hub ({reason}); "
        f"pass {key}=<folder>"
    )


def encoder_layers(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Name and modules of the encoder's stack of layers; of XLM's several, side by side.

    Raises:
        ValueError: The model has no module list of ``config.num_hidden_layers`` members.
    """
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    }
    if not stacks:
        raise ValueError(
            f"model_type={model.config.model_type}: its encoder layers were not found; "
            "name what may be pruned in model.scope"
        )
    within = next(iter(stacks)).rpartition(".")[0]
    return {name: stack for name, stack in stacks.items() if name.rpartition(".")[0] == within}


def encoder_scope(model: PreTrainedModel) -> Scope:
    """The Linear weights of every encoder layer: six per layer for BERT and its family."""
    linears = {
        f"*{stack}.*.{name}.weight"
        for stack, layers in encoder_layers(model).items()
        for layer in layers
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not linears:
        raise ValueError(
            f"model_type={model.config.model_type}: its layers hold no Linear weights; name what "
            "to prune, model.scope='{_target_: kd_prune.pruning.Scope, include: [\"*.weight\"]}'"
        )
    return Scope(include=sorted(linears))


def positions(model: PreTrainedModel) -> float:
    """Longest input in tokens: rows of the table of positions; infinite where there is none."""
    for name, module in model.named_modules():
        if name.endswith(("position_embeddings", "embed_positions")) and isinstance(
            module, nn.Embedding
        ):
            # RoBERTa counts from behind the padding's index, BART from an offset.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - getattr(module, "offset", skipped)
    return math.inf


def forward(model: nn.Module, batch: Batch, requires: frozenset[str]) -> Activations:
    """Run `model` on `batch`; what was not asked for is neither computed nor kept.

    Segments that another model reads (BERT beside DistilBERT) are kept from one that does not.
    """
    of_others = {"labels"} if reads_segments(model) else {"labels", SEGMENTS}
    outputs = model(
        **{name: tensor for name, tensor in batch.items() if name not in of_others},
        output_hidden_states="hidden_states" in requires,
        output_attentions="attention_scores" in requires,
    )
    return Activations(
        logits=outputs.logits,
        # Not there in an encoder with a decoder, which has two of each.
        hidden_states=tuple(getattr(outputs, "hidden_states", None) or ()),
        attention_scores=tuple(getattr(outputs, "attentions", None) or ()),
    )


def reads_segments(model: nn.Module) -> bool:
    """Whether the model tells the first text of a pair from the second by ``token_type_ids``."""
    return SEGMENTS in signature(model.forward).parameters


def prepare(model: PreTrainedModel, requires: frozenset[str]) -> None:
    """Make `model` able to give what is required; leaves SDPA on where no term asks for scores.

    Raises:
        ValueError: See `tap_attention_scores`.
    """
    if "attention_scores" in requires:
        tap_attention_scores(model)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout of `model` this probability; a saved config keeps its own.

    Also those that are a number of their module and are applied by a function, as in ModernBERT's
    attention and in all of BART.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name, value in vars(module).items():
            if (
                "dropout" in name
                and isinstance(value, (int, float))
                and not isinstance(value, bool)
            ):
                setattr(module, name, probability)


PROBE = "The naïve FOX isn't 12.5 % sure, 北京 or (is it)?"


def check_vocabularies(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless both give the same words the same numbers, in a sentence too."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        word = min(w for w in ours.keys() | theirs.keys() if ours.get(w) != theirs.get(w))
        raise ValueError(
            f"teacher.path={teacher.name_or_path}: the teacher's vocabulary has {theirs.get(word)} "
            f"for {word!r}, the student's {ours.get(word)}; take a teacher with the student's"
        )
    ours, theirs = (tokens(PROBE, PROBE)["input_ids"] for tokens in (student, teacher))
    if ours != theirs:  # cased and uncased, for one
        raise ValueError(
            f"teacher.path: the teacher's tokenizer makes {theirs} of {PROBE!r}, the student's "
            f"{ours}; take a teacher that reads texts as the student does"
        )


def check_pair(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise ValueError unless both read the same tokens and give as many outputs."""
    for name, key in (("vocabulary", "vocab_size"), ("number of labels", "num_labels")):
        ours, theirs = getattr(student.config, key), getattr(teacher.config, key)
        if ours != theirs:
            raise ValueError(
                f"teacher.path: the teacher's {name} is {theirs}, the student's {ours}; "
                "take a teacher that was fine-tuned from the same family on the same task"
            )


def check_same_shapes(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise ValueError unless the student can begin with the teacher's weights."""
    ours, theirs = (
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for model in (student, teacher)
    )
    if ours != theirs:
        name = next(n for n in (*ours, *theirs) if ours.get(n) != theirs.get(n))
        raise ValueError(
            f"student.init=teacher: {name} is {theirs.get(name)} in the teacher and "
            f"{ours.get(name)} in the student; take a teacher of the same shape, or "
            "student.init=pretrained"
        )


# What of a config is about names of labels, or where and by what it was written.
OF_NO_MATTER = {
    "_name_or_path",
    "architectures",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "transformers_version",
}


def encoder_weight(model: PreTrainedModel) -> re.Pattern[str]:
    """What names of weights begin with that come with the files; a head and a pooler may be new."""
    return re.compile(rf"{model.base_model_prefix}\.(?!pooler\.)")


def fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, head: bool = True
) -> str:
    """Hash of a model to be fine-tuned: weights, config and tokenizer.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        head: Whether weights count that may be new: those of one seed differ between kinds of CPU.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not head and not encoder_weight(model).match(name):
            continue
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    config = model.config.to_dict()
    matters = {key: value for key, value in config.items() if key not in OF_NO_MATTER}
    digest.update(json.dumps(matters, sort_keys=True, default=str).encode())
    return digest.hexdigest()
