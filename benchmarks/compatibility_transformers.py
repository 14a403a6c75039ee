"""Networks of transformers, from small configurations."""

from __future__ import annotations

from typing import Any

import torch
from compatibility_project import (
    ROWS,
    STEPS,
    WORDS,
    Batch,
    Case,
    Project,
    Supervised,
    classify,
    images,
    texts,
)
from torch import Tensor, nn

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {}, "roberta": {}, "electra": {"embedding_size": 32}, "mpnet": {},
    "albert": {"embedding_size": 16}, "deberta-v2": {}, "ernie": {}, "modernbert": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "xlm-roberta": {}, "nomic_bert": {},
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4}, "llama": GROUPED, "mistral": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4}, "qwen2": GROUPED, "qwen3": GROUPED,
    "gemma2": GROUPED, "phi": {}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": {}, "bloom": {"n_layer": 2, "n_head": 4}, "falcon": {"num_kv_heads": 4},
    "mamba": {"state_size": 8},
}  # fmt: skip
VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "patch_size": 8},
    "dinov2": {"image_size": 32, "patch_size": 8},
    "swin": {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1],
             "num_heads": [2, 4], "window_size": 4},
    "convnext": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 32], "num_stages": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
               "layer_type": "basic"},
}  # fmt: skip


def language_model(kind: str, settings: dict[str, Any], masked: bool) -> Project:
    """Make a language model of transformers, from a configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    model = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    config = AutoConfig.for_model(kind, **(SMALL | settings))

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return network(input_ids=batch["x"], labels=batch["x"]).loss

    return Project(Supervised(model.from_config(config), loss), texts())


def image_model(kind: str, settings: dict[str, Any]) -> Project:
    """Make an image classifier of transformers, from a configuration."""
    from transformers import AutoConfig, AutoModelForImageClassification

    shape = {k: v for k, v in SMALL.items() if k.startswith(("hidden", "num", "inter"))}
    if kind in ("swin", "convnext", "resnet"):
        shape = {}
    config = AutoConfig.for_model(kind, num_labels=5, **(shape | settings))
    return Project(Supervised(AutoModelForImageClassification.from_config(config), classify),
                   images())  # fmt: skip


def translation_model(kind: str) -> Project:
    """Make an encoder with a decoder."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    settings = {
        "t5": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4,
               "vocab_size": WORDS, "decoder_start_token_id": 0},
        "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64,
                 "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                 "vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                 "decoder_start_token_id": 2, "forced_eos_token_id": 2},
    }[kind]  # fmt: skip
    network = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **settings))

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return network(input_ids=batch["x"], labels=batch["x"]).loss

    return Project(Supervised(network, loss), texts())


def speech_model() -> Project:
    """Make a speech encoder with convolutions in front."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        **{k: v for k, v in SMALL.items() if k != "vocab_size"}, conv_dim=(16, 16),
        conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2, num_labels=5,
        classifier_proj_size=16, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
    )  # fmt: skip
    batches = [{"x": torch.randn(ROWS, 800), "y": torch.randint(5, (ROWS,))} for _ in range(STEPS)]
    return Project(Supervised(Wav2Vec2ForSequenceClassification(config), classify), batches)


def cases() -> list[Case]:
    """Return the cases, in the order of the table."""
    found = [
        Case("encoders of transformers", kind, lambda k=kind, s=s: language_model(k, s, True))
        for kind, s in ENCODERS.items()
    ]
    found += [
        Case("decoders of transformers", kind, lambda k=kind, s=s: language_model(k, s, False))
        for kind, s in DECODERS.items()
    ]
    found += [
        Case("encoders with a decoder", kind, lambda k=kind: translation_model(k))
        for kind in ("t5", "bart")
    ]
    found += [
        Case("images and sound", kind, lambda k=kind, s=s: image_model(k, s))
        for kind, s in VISION.items()
    ]
    found += [Case("images and sound", "wav2vec2", speech_model)]
    return found
