"""An encoder's stack of layers: the weights in scope, the longest input, the dropout."""

from __future__ import annotations

import math
from contextlib import suppress

from torch import nn
from transformers import PreTrainedModel

from kd_prune.errors import ConfigError
from kd_prune.pruning.scope import Scope


def encoder_layers(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Return name → list of layers; XLM keeps the parts of a layer in several parallel lists.

    Raises:
        ConfigError: The model has no module list of ``config.num_hidden_layers`` members.
    """
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    }
    if not stacks:
        raise ConfigError(
            "model_type",
            model.config.model_type,
            "the encoder layers of this family were not found",
            "name the weights that may be pruned in model.scope",
        )
    parent = next(iter(stacks)).rpartition(".")[0]
    return {name: stack for name, stack in stacks.items() if name.rpartition(".")[0] == parent}


def encoder_scope(model: PreTrainedModel) -> Scope:
    """Return the scope of all weights of encoder layers that are Linear, or of an LSTM or GRU.

    These are six matrices per layer in BERT's family.

    Raises:
        ConfigError: The layers are not found, or hold no such weights.
    """
    linears = {
        f"*{stack}.*.{name}.weight{'' if isinstance(module, nn.Linear) else '_*'}"
        for stack, layers in encoder_layers(model).items()
        for layer in layers
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | nn.RNNBase)
    }
    if not linears:
        raise ConfigError(
            "model_type",
            model.config.model_type,
            "the layers of this family hold no Linear weights",
            "name the weights to prune, "
            "model.scope='{_target_: kd_prune.pruning.Scope, include: [\"*.weight\"]}'",
        )
    return Scope(include=sorted(linears))


def encoder_weights(model: PreTrainedModel) -> set[str]:
    """Return the names of the weights in the encoder's scope; none if its layers are not found."""
    with suppress(ConfigError):
        return set(encoder_scope(model).select(model))
    return set()


def max_positions(model: PreTrainedModel) -> float:
    """Return the longest input in tokens: rows of the position table; infinite without a table."""
    for name, module in model.named_modules():
        if name.endswith(("position_embeddings", "embed_positions")) and isinstance(
            module, nn.Embedding
        ):
            # RoBERTa's positions begin after the padding's index, BART's at an offset.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - getattr(module, "offset", skipped)
    return math.inf


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout of `model` to this probability; the config does not change.

    Covers dropouts that are a number on their module and are applied by a function, as in
    ModernBERT's attention and in all of BART.
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
