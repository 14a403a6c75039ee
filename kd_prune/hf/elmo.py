"""ELMo over word pieces: a language model of two LSTM stacks, and a classifier on its mixed layers.

Source: Peters et al. 2018 (arXiv 1802.05365); the classifier is that of GLUE's baseline (arXiv
1804.07461): a bidirectional LSTM, maxima over the tokens of each text, and their comparison. Unlike
there, words are the word pieces of another model's tokenizer, and a pair is read as one sequence.

The classes are registered with transformers when kd_prune.hf is imported, so that ``Auto…`` loads a
saved folder; without kd_prune it cannot be loaded.
"""

# mypy: disable-error-code="no-untyped-call"
# Subclasses of transformers' classes call untyped ones.
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

from kd_prune import atomic_io
from kd_prune.errors import ConfigError
from kd_prune.hf.encoders import folder_or_id, load_error
from kd_prune.hf.fingerprint import tokenizer_state


class ElmoConfig(PreTrainedConfig):
    """Shape of an ELMo.

    Args:
        vocab_size: Word pieces.
        hidden_size: Width of a layer's output, both directions together; an even number.
        num_hidden_layers: Layers of each direction.
        hidden_dropout_prob: Dropout between layers.
        initializer_range: Standard deviation of new embeddings.
        sep_token_id: Token between two texts; None: texts are never compared with one another.
    """

    model_type = "kd_prune_elmo"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 256,
        num_hidden_layers: int = 2,
        hidden_dropout_prob: float = 0.1,
        initializer_range: float = 0.1,
        sep_token_id: int | None = None,
        **settings: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = 2  # the two directions: a narrower width is divisible by it
        self.hidden_dropout_prob = hidden_dropout_prob
        self.initializer_range = initializer_range
        self.sep_token_id = sep_token_id
        super().__init__(**settings)


class TwoDirections(nn.Module):
    """An LSTM that reads from left to right, and one from right to left.

    Args:
        inputs: Width of each direction's input.
        outputs: Width of each direction's output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.forward_lstm = nn.LSTM(inputs, outputs, batch_first=True)
        self.backward_lstm = nn.LSTM(inputs, outputs, batch_first=True)

    def forward(self, left: Tensor, right: Tensor, reversal: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of both, (batch, length, outputs) each.

        Args:
            left: Input from left to right, (batch, length, inputs).
            right: Input of the other direction, in the order of the text.
            reversal: From `reversal_of`.
        """
        backward = self.backward_lstm(reversed_tokens(right, reversal))[0]
        return self.forward_lstm(left)[0], reversed_tokens(backward, reversal)


def reversal_of(attention_mask: Tensor) -> Tensor:
    """Return the order that reverses each row's real tokens, and leaves padding at the end.

    >>> reversal_of(torch.tensor([[1, 1, 1, 0, 0]]))
    tensor([[2, 1, 0, 3, 4]])
    """
    lengths = attention_mask.sum(1, keepdim=True)
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None]
    return torch.where(places < lengths, lengths - 1 - places, places)


def reversed_tokens(states: Tensor, reversal: Tensor) -> Tensor:
    """Put the tokens of (batch, length, d) in another order, (batch, length)."""
    return states.gather(1, reversal[..., None].expand_as(states))


class ElmoPreTrainedModel(PreTrainedModel):
    """What all ELMo classes share."""

    config_class = ElmoConfig
    base_model_prefix = "elmo"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NextToken):
            initialization.zeros_(module.bias)
        if isinstance(module, LayerMixture):
            initialization.zeros_(module.weights)
            initialization.ones_(module.scale)


class ElmoModel(ElmoPreTrainedModel):
    """Embeddings and layers of both directions, which see nothing of one another.

    From the second layer on, a layer's input is added to its output.
    """

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__(config)
        if config.hidden_size % 2:
            raise ConfigError("hidden_size", config.hidden_size, "expected an even number")
        width = config.hidden_size // 2
        self.embeddings = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(
            TwoDirections(width, width) for _ in range(config.num_hidden_layers)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of word pieces."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of word pieces."""
        self.embeddings = cast("nn.Embedding", value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **_: Any,
    ) -> BaseModelOutput:
        """Return the states of the last layer, (batch, length, hidden size), or of all layers."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        reversal = reversal_of(attention_mask)
        left = right = self.embeddings(input_ids)
        states = [torch.cat([left, right], -1)]
        for i, layer in enumerate(self.layers):
            outputs = layer(self.dropout(left), self.dropout(right), reversal)
            left, right = outputs if i == 0 else (left + outputs[0], right + outputs[1])
            states.append(torch.cat([left, right], -1))
        return BaseModelOutput(
            last_hidden_state=states[-1],
            hidden_states=tuple(states) if output_hidden_states else None,
        )


class NextToken(nn.Module):
    """Logits of word pieces by the table of their embeddings, with a bias for each."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, states: Tensor, table: Tensor) -> Tensor:
        """Return logits, (…, 2, vocabulary), of states (…, 2 d), by the table (vocabulary, d)."""
        logits: Tensor = states.unflatten(-1, (2, -1)) @ table.T + self.bias
        return logits


class LayerMixture(nn.Module):
    """``γ Σ_l softmax(s)_l h_l``: a learned mixture of layers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Return the mixture, of the shape of one layer."""
        mixed: Tensor = self.scale * (torch.stack(list(layers), -1) @ self.weights.softmax(0))
        return mixed


class ElmoForPreTraining(ElmoPreTrainedModel):
    """The language model: each direction predicts the next token that it will read."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__(config)
        self.elmo = ElmoModel(config)
        self.head = NextToken(config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the head, whose table is that of the input."""
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **_: Any,
    ) -> MaskedLMOutput:
        """Return logits (batch, length, 2, vocabulary): of the token after, and of that before."""
        outputs = self.elmo(input_ids, attention_mask, output_hidden_states)
        states = self.elmo.dropout(outputs.last_hidden_state)
        logits = self.head(states, self.elmo.embeddings.weight)
        return MaskedLMOutput(logits=logits, hidden_states=outputs.hidden_states)


class ElmoForSequenceClassification(ElmoPreTrainedModel):
    """A bidirectional LSTM on a learned mixture of the layers, and a comparison of two texts."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__(config)
        width = config.hidden_size // 2
        self.elmo = ElmoModel(config)
        self.mixture = LayerMixture(config.num_hidden_layers + 1)
        self.reader = TwoDirections(config.hidden_size, width)
        self.dense = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Return logits (batch, labels).

        The LSTM reads the mixture of all layers; u and v are the maxima over the tokens of the
        first and the second text (the same where there is only one), and
        ``[u, v, |u - v|, u · v]`` is classified. The second text follows the first separator.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        outputs = self.elmo(input_ids, attention_mask, output_hidden_states=True)
        mixed = self.elmo.dropout(self.mixture(outputs.hidden_states))
        read = torch.cat(self.reader(mixed, mixed, reversal_of(attention_mask)), -1)
        real = attention_mask.bool()
        separator = self.config.sep_token_id
        separates = input_ids == (-1 if separator is None else separator)
        second = real & (separates.cumsum(1) > separates)
        second = torch.where(second.any(1, keepdim=True), second, real)
        first = torch.where((real & ~second).any(1, keepdim=True), real & ~second, real)
        u, v = (maximum(read, chosen) for chosen in (first, second))
        compared = torch.cat([u, v, (u - v).abs(), u * v], -1)
        logits = self.classifier(self.elmo.dropout(self.dense(compared).tanh()))
        return SequenceClassifierOutput(
            logits=logits, hidden_states=outputs.hidden_states if output_hidden_states else None
        )


def maximum(states: Tensor, chosen: Tensor) -> Tensor:
    """Return the maximum over the chosen tokens, (batch, d)."""
    lowest = torch.finfo(states.dtype).min
    return states.masked_fill(~chosen[..., None], lowest).amax(1)


OWN_ARCHITECTURES: dict[str, type[PreTrainedModel]] = {
    model.__name__: model
    for model in (ElmoModel, ElmoForPreTraining, ElmoForSequenceClassification)
}
"""Name in config.json → model, of those that transformers does not have."""
AutoConfig.register(ElmoConfig.model_type, ElmoConfig)
AutoModel.register(ElmoConfig, ElmoModel)
AutoModelForPreTraining.register(ElmoConfig, ElmoForPreTraining)
AutoModelForSequenceClassification.register(ElmoConfig, ElmoForSequenceClassification)


def make_model(
    cache_dir: str, *, tokenizer: str, hidden_size: int = 256, layers: int = 2, seed: int = 0
) -> str:
    """Write a randomly initialised ELMo and a copy of a tokenizer; return the folder.

    Args:
        cache_dir: Cache folder.
        tokenizer: Folder or hub id of the model whose tokenizer it reads.
        hidden_size: Width of a layer's output, both directions together.
        layers: Layers.
        seed: Seed of the weights.

    Raises:
        ConfigError: The tokenizer cannot be read, or a number is out of its range.
    """
    for key, value, least in (("hidden_size", hidden_size, 2), ("layers", layers, 1)):
        if value < least:
            raise ConfigError(key, value, f"expected at least {least}")
    try:
        words = AutoTokenizer.from_pretrained(folder_or_id(tokenizer), trust_remote_code=False)
    except Exception as error:  # of any type: each kind of damage raises another
        raise load_error("tokenizer", tokenizer, error) from error
    settings = (hidden_size, layers, seed, Path(__file__).read_bytes())
    digest = hashlib.sha256(tokenizer_state(words) + repr(settings).encode()).hexdigest()[:16]
    folder = Path(cache_dir).expanduser() / "elmo" / digest
    if not folder.is_dir():
        words.padding_side = "right"
        config = ElmoConfig(
            vocab_size=len(words),
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            sep_token_id=words.sep_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ElmoForPreTraining(config)
        with atomic_io.folder(folder) as scratch:
            words.save_pretrained(scratch)
            model.save_pretrained(scratch)
    return str(folder)
