"""Small sparse models for these tests."""

import pickle

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 250,
    "max_position_embeddings": 180,
}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES)),
    "bert-eager": lambda: BertModel(
        BertConfig(**SIZES, attn_implementation="eager", hidden_act="silu")
    ),
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(**SIZES, hidden_act="gelu_new")
    ),
    "electra": lambda: ElectraForSequenceClassification(
        ElectraConfig(**SIZES, embedding_size=32, hidden_act="relu")
    ),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=100,
            dim=64,
            hidden_dim=250,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=180,
        )
    ),
}


def sparse_model(name, sparsity=0.8):
    """Build a model with random weights, some of them zero, and biases that matter."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight *= torch.rand_like(module.weight) >= sparsity
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                module.bias += torch.randn_like(module.bias) / 10
    return model


def blocked_model(name, sparsity=0.8):
    """Build such a model whose zeros come in blocks of four inputs, and whose layers matter."""
    return with_blocks(sparse_model(name, 0.0), sparsity)


def with_blocks(model, sparsity):
    """Prune blocks of four inputs, and enlarge the rest, so that residuals do not hide them."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight *= kept_blocks(module.weight.shape, sparsity)
                module.weight *= 64 / module.in_features**0.5
    return model


def sparse_linear(in_features, out_features, sparsity=0.9, bias=True):
    """Build a linear layer with zeros."""
    layer = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
    layer.weight *= torch.rand_like(layer.weight) >= sparsity
    return layer


def blocked_linear(in_features, out_features, sparsity=0.9, bias=True):
    """Build a linear layer whose zeros come in blocks of four inputs."""
    layer = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
    layer.weight *= kept_blocks(layer.weight.shape, sparsity)
    return layer


def kept_weights(shape, sparsity):
    """Draw which weights are kept."""
    return torch.rand(shape) >= sparsity


def kept_blocks(shape, sparsity):
    """Draw which weights are kept, four neighbours together."""
    kept = torch.rand(shape[0], -(-shape[1] // 4)) >= sparsity
    return kept.repeat_interleave(4, 1)[:, : shape[1]]


def batch(size, length, masked=True, seed=0):
    """Draw token ids, and a mask that leaves each sequence at least one token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 100, (size, length), generator=generator)
    mask = torch.ones_like(ids)
    if masked:
        ends = torch.randint(1, length + 1, (size, 1), generator=generator)
        mask = (torch.arange(length) < ends).long()
    return {"input_ids": ids, "attention_mask": mask}


def pickled(made):
    return pickle.loads(pickle.dumps(made))  # noqa: S301
