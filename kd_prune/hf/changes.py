"""Changes of an encoder's shape: fewer layers, another width."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kd_prune.errors import ConfigError
from kd_prune.hf.layers import encoder_layers

LAYER_CHOICES = ("first", "spaced")
# Width → names that configs have for it; DistilBERT's feed-forward width is its hidden_dim.
WIDTHS = {"hidden_size": ("hidden_size",), "intermediate_size": ("intermediate_size", "hidden_dim")}


@dataclass(frozen=True, kw_only=True)
class EncoderChange:
    """The shape of a student that is smaller than the pre-trained encoder.

    A fraction is a share of the encoder's own number of layers or width, so that one setting suits
    encoders of every size: of 12 layers 0.5 keeps 6, of 6 layers 3.

    Args:
        layers: Layers to keep with their weights: a number, a fraction, or a list of indices (from
            0, ascending); None: all.
        layer_choice: Which layers a number or fraction keeps: the `first` ones, or `spaced` ones,
            evenly from the first to the last (DistilBERT: 0, 2, 4, 7, 9, 11 of 12).
        hidden_size: Width of the hidden states, or a fraction of the encoder's, rounded to a
            multiple of its heads; all weights are new and random.
        intermediate_size: Width of the feed-forward blocks, or a fraction of the encoder's; all
            weights are new and random.

    Raises:
        ConfigError: A value is out of its range, or the indices are not ascending.
    """

    layers: int | float | Sequence[int] | None = None
    layer_choice: str = "first"
    hidden_size: int | float | None = None
    intermediate_size: int | float | None = None

    def __post_init__(self) -> None:
        for key in ("layers", "hidden_size", "intermediate_size"):
            value = getattr(self, key)
            if isinstance(value, int) and value < 1:
                raise ConfigError(key, value, "expected at least 1")
            if isinstance(value, float) and not 0.0 < value <= 1.0:
                raise ConfigError(key, value, "expected a whole number, or a fraction in (0, 1]")
        if self.layer_choice not in LAYER_CHOICES:
            expected = f"expected {' or '.join(LAYER_CHOICES)}"
            raise ConfigError("layer_choice", self.layer_choice, expected)
        if isinstance(self.layers, Sequence):
            indices = list(self.layers)
            if not indices or indices != sorted(set(indices)):
                raise ConfigError("layers", indices, "expected ascending indices, each once")

    @property
    def new_weights(self) -> bool:
        """Whether the width changes, so that no pre-trained weight fits."""
        return self.hidden_size is not None or self.intermediate_size is not None

    def kept_layers(self, number: int) -> list[int]:
        """Return the indices of the kept layers of an encoder with `number` layers.

        Raises:
            ConfigError: An index, or the number of layers to keep, is too high.
        """
        if self.layers is None:
            return list(range(number))
        if isinstance(self.layers, int | float):
            kept = part_of(self.layers, number)
            if kept > number:
                raise ConfigError("layers", self.layers, f"the encoder has {number} layers")
            return list(range(kept)) if self.layer_choice == "first" else spaced(kept, number)
        indices = list(self.layers)
        if indices[0] < 0 or indices[-1] >= number:
            raise ConfigError(
                "layers",
                indices,
                f"the encoder has layers 0 to {number - 1}",
                "name indices in that range",
            )
        return indices

    def config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Return the config of the changed encoder.

        Raises:
            ConfigError: The change does not suit the encoder.
        """
        changed = copy.deepcopy(config)
        heads = config.num_attention_heads
        for key, names in WIDTHS.items():
            if (value := getattr(self, key)) is None:
                continue
            name = next((name for name in names if hasattr(changed, name)), None)
            if name is None:
                raise ConfigError(key, value, f"model_type={config.model_type} has no such width")
            unit = heads if key == "hidden_size" else 1
            setattr(changed, name, part_of(value, getattr(config, name), unit))
        if hasattr(changed, "pooler_hidden_size"):  # DeBERTa's, saved beside the width it equals
            changed.pooler_hidden_size = changed.hidden_size
        if isinstance(self.hidden_size, int) and self.hidden_size % heads:
            below = self.hidden_size // heads * heads
            raise ConfigError(
                "hidden_size",
                self.hidden_size,
                f"not divisible by the encoder's {heads} attention heads",
                f"take {' or '.join(str(size) for size in (below, below + heads) if size)}",
            )
        if self.layers is not None:
            kept = self.kept_layers(config.num_hidden_layers)
            for key, value in config.to_dict().items():  # one entry per layer
                if key.endswith("layer_types") and isinstance(value, list):
                    setattr(changed, key, [value[i] for i in kept])
            changed.num_hidden_layers = len(kept)
        return changed


def part_of(value: int | float, whole: int, unit: int = 1) -> int:
    """Return a number as it is, and a fraction as the nearest multiple of `unit`, at least one.

    >>> part_of(5, 12), part_of(0.5, 12), part_of(0.5, 3), part_of(0.40625, 384, 12)
    (5, 6, 2, 156)
    """
    if isinstance(value, int):
        return value
    return unit * max(1, math.floor(value * whole / unit + 0.5))


def spaced(count: int, number: int) -> list[int]:
    """Choose `count` of `number` layers, evenly from the first to the last.

    >>> spaced(6, 12), spaced(3, 6), spaced(1, 2)
    ([0, 2, 4, 7, 9, 11], [0, 3, 5], [0])
    """
    step = (number - 1) / max(1, count - 1)
    return [math.floor(i * step + 0.5) for i in range(count)]


def with_layers(model: PreTrainedModel, change: EncoderChange, auto_model: Any) -> PreTrainedModel:
    """Make a model of the kept layers only, with their weights.

    The model is built from its config, as `from_pretrained` does, so that a saved copy loads as the
    same model.

    Args:
        model: The model with all layers.
        change: The change.
        auto_model: Class that makes the model from its config.

    Raises:
        ConfigError: The layers do not exist, or a kept layer does not fit its new position.
    """
    kept = change.kept_layers(model.config.num_hidden_layers)
    stacks = "|".join(re.escape(name) for name in encoder_layers(model))
    of_a_layer = re.compile(rf"({stacks})\.(\d+)\.")
    place = {old: new for new, old in enumerate(kept)}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if found := of_a_layer.match(name):
            if (old := int(found[2])) not in place:
                continue
            name = f"{found[1]}.{place[old]}.{name[found.end() :]}"
        state[name] = tensor
    shorter = new_model(auto_model, change.config(model.config))
    try:
        shorter.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            "layers",
            list(kept),
            f"the layers of model_type={model.config.model_type} differ, so that one cannot take "
            "another one's place",
            "keep layer 0",
        ) from error
    return shorter


def new_model(auto_model: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """Make a model with random weights in float32, in evaluation mode as a loaded one."""
    model: PreTrainedModel = auto_model.from_config(config, dtype=torch.float32)
    model.train(False)
    return model
