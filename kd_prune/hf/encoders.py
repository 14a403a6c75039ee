"""Pre-trained encoders: model and tokenizer, from a folder or the hub."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kd_prune.errors import ConfigError, key_prefix
from kd_prune.hf.changes import EncoderChange, new_model, with_layers
from kd_prune.hf.fingerprint import pretrained_weights
from kd_prune.hf.kinds.base import TaskKind, kind_name
from kd_prune.pruning.scope import Scope

NO_CHANGE = EncoderChange()


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoder:
    """A pre-trained encoder by folder or hub id.

    Args:
        path: Folder, or hub id.
        revision: Branch, tag or commit on the hub.
        scope: Parameters that may be pruned; None: the Linear weights of every encoder layer.
    """

    path: str
    revision: str | None = None
    scope: Scope | None = None

    def load(
        self,
        *,
        kind: TaskKind,
        num_outputs: int,
        head: bool = False,
        key: str = "model.path",
        change: EncoderChange = NO_CHANGE,
        change_key: str = "",
    ) -> PreTrainedModel:
        """Load the model in float32, with a new head unless the files hold one of the right shape.

        New weights come from the global random generator.

        Args:
            kind: Kind of the task, which determines the head.
            num_outputs: Outputs of the head; 0: the kind does not set them.
            head: Whether the files must hold the head.
            key: Option that named the path, for errors.
            change: Changes of the encoder's shape.
            change_key: Prefix of the change's options, for errors.

        Raises:
            ConfigError: The model cannot be reached or read, its weights do not fit its config, or
                the change does not suit it.
        """
        if change.new_weights:
            config = self._config(key, **_labels(num_outputs))
            with key_prefix(change_key) if change_key else nullcontext():
                return new_model(kind.auto_model, change.config(config))
        try:
            model: PreTrainedModel
            model, info = kind.auto_model.from_pretrained(
                folder_or_id(self.path),
                revision=self.revision or "main",
                trust_remote_code=False,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_labels(num_outputs),
            )
        except Exception as error:  # of any type: each kind of damage raises another
            raise load_error(key, self.path, error) from error
        new = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
        if missing := sorted(new if head else filter(pretrained_weights(model).match, new)):
            raise ConfigError(  # transformers would use random weights, and only log it
                key,
                self.path,
                f"{missing[0]} is missing or of another shape than config.json says; the weights "
                "are of another model",
            )
        if change.layers is None:
            return model
        with key_prefix(change_key) if change_key else nullcontext():
            return with_layers(model, change, kind.auto_model)

    def tokenizer(self, key: str = "model.path") -> PreTrainedTokenizerBase:
        """Load the tokenizer that comes with the model; `key` is the option that named the path.

        Raises:
            ConfigError: It cannot be reached or read, or has no vocabulary or padding token.
        """
        try:
            path = folder_or_id(self.path)
            tokenizer = AutoTokenizer.from_pretrained(
                path, revision=self.revision or "main", trust_remote_code=False
            )
        except Exception as error:  # of any type: each kind of damage raises another
            raise load_error(key, self.path, error) from error
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ConfigError(  # without files transformers makes a tokenizer without words
                key,
                self.path,
                "no tokenizer comes with the model",
                "save it there too (tokenizer.json, tokenizer_config.json)",
            )
        if tokenizer.pad_token is None:
            raise ConfigError(
                key,
                self.path,
                "its tokenizer has no padding token, so texts of different lengths make no batch",
                "name one in its tokenizer_config.json, as pad_token",
            )
        return tokenizer

    def fine_tuned_config(self, kind: TaskKind, key: str = "model.path") -> PreTrainedConfig:
        """Load the config of a model that was fine-tuned on a task of this kind.

        Raises:
            ConfigError: It cannot be reached, or the model has no head of this kind, so that
                loading it would add a random one.
        """
        config = self._config(key)
        if not has_head(config, kind):
            found = ", ".join(config.architectures or ["the model"])
            raise ConfigError(
                key,
                self.path,
                f"{found} has no head for a task of kind {kind_name(kind)}",
                "take a model that was fine-tuned on the task",
            )
        return config

    def _config(self, key: str, **settings: Any) -> PreTrainedConfig:
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                folder_or_id(self.path),
                revision=self.revision or "main",
                trust_remote_code=False,  # without it transformers asks, on standard input
                **settings,
            )
        except Exception as error:  # of any type: each kind of damage raises another
            raise load_error(key, self.path, error) from error
        return config


def has_head(config: PreTrainedConfig, kind: TaskKind) -> bool:
    """Return whether a model, by its config, has the head of a kind; True if the kind has none."""
    # "ForSequenceClassification"; of a kind without a head ""
    head = kind.auto_model.__name__.removeprefix("AutoModel")
    return not head or any(head in name for name in config.architectures or ())


def _labels(num_outputs: int) -> dict[str, int]:
    return {"num_labels": num_outputs} if num_outputs else {}


def folder_or_id(path: str) -> str:
    """Expand the ``~`` of a folder; return anything else unchanged, as it may be a hub id."""
    folder = Path(path).expanduser()
    return str(folder) if folder.is_dir() else path


def may_be_hub_id(path: str) -> bool:
    """Return whether a path that is no folder may name a model on the hub.

    >>> may_be_hub_id("google-bert/bert-base-uncased"), may_be_hub_id("./bert")
    (True, False)
    """
    return not path.startswith(("/", ".", "~")) and path.count("/") <= 1


def load_error(key: str, path: str, error: Exception) -> ConfigError:
    """Return a one-line error for whatever the hub or the disk raised."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(": ")
    folder = Path(path).expanduser()
    if "custom code" in reason:  # of transformers, as trust_remote_code is False
        return ConfigError(
            key,
            path,
            "its config.json names code of its own, which is not run",
            "take a model of an architecture that transformers has",
        )
    if folder.is_dir():
        return ConfigError(
            key,
            path,
            f"the folder cannot be read ({reason})",
            "it has to hold config.json, weights and a tokenizer, as save_pretrained writes them",
        )
    if folder.is_file():
        return ConfigError(key, path, "a file", "pass the folder that holds it")
    if not may_be_hub_id(path):
        return ConfigError(key, path, "there is no such folder", "pass the path of a folder")
    return ConfigError(
        key,
        path,
        f"not a local folder, and not available from the hub ({reason})",
        "pass the path of a folder",
    )
