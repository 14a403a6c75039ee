"""Attention heads of BERT and DistilBERT."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from kd_prune.pruning import (
    Global,
    uniform,
)
from kd_prune.pruning.granularity import (
    CrossTensorGranularity,
    compute_masks,
    pool_scores,
    reachable_counts,
)
from kd_prune.pruning.granularity.heads import AttentionHeads
from kd_prune.pruning.granularity.nm import NM
from kd_prune.pruning.granularity.structured import Rows

from .problems import ones, randn


def test_global_ranks_heads_and_other_groups():
    weights = {name: weight.detach().abs() for name, weight in matrices(bert()).items()}
    masks = {name: ones(*weight.shape) for name, weight in weights.items()}
    levelled = pool_scores(AttentionHeads(size=8, others=Rows()), masks, weights.get)
    for name, weight in weights.items():
        if "attention" in name:
            per_head = levelled(name).T if is_output(name) else levelled(name)
            assert len(per_head.unique()) == 4
            query = name.split(".attention.")[0] + ".attention.self.query.weight"
            assert torch.equal(per_head, levelled(query))
        else:
            assert torch.equal(levelled(name), Rows().broadcast_scores(weight))


TINY = {"num_attention_heads": 4, "vocab_size": 20, "max_position_embeddings": 16}


def bert():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=3, intermediate_size=48, **TINY)
    return BertModel(config).eval()


def distilbert():
    torch.manual_seed(0)
    config = {"dim": 32, "n_layers": 3, "hidden_dim": 48, "n_heads": 4}
    config |= {"vocab_size": 20, "max_position_embeddings": 16}
    return DistilBertModel(DistilBertConfig(**config)).eval()


def matrices(model):
    """The encoder's weights, without the pooler and the embeddings."""
    return {
        f"model.{name}": parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "layer." in name
    }


def update(weights, masks, granularity, allocation, sparsity, disturb=None):
    """Make an update as the Pruner does; return the counts and the reachable counts."""

    def score(name):
        return weights[name].detach().abs()

    counts = allocation(masks, pool_scores(granularity, masks, score), sparsity)
    promised = reachable_counts(
        granularity, {name: mask.shape for name, mask in masks.items()}, counts
    )
    for name, mask in compute_masks(granularity, masks, score, counts):
        masks[name].copy_(mask)
        with torch.no_grad():
            weights[name].mul_(mask)
            if disturb:
                disturb(weights[name], mask)
    return counts, promised


def is_output(name):
    return "output.dense" in name or "out_lin" in name


def heads_left(mask, axis, size=8):
    """Whether each head is kept; assert that no head is kept in part."""
    per_head = (mask if axis == 0 else mask.T).unflatten(0, (-1, size)).flatten(1)
    assert torch.equal(per_head.any(1), per_head.all(1))
    return per_head.any(1).tolist()


def layers_of(masks):
    """Kept heads of query, key, value and output projection per layer."""
    found = {}
    for name, mask in masks.items():
        if "attention" in name:
            heads = heads_left(mask, axis=int(is_output(name)))
            found.setdefault(name.split(".attention.")[0], []).append(heads)
    assert all(len(heads) == 4 for heads in found.values())
    return list(found.values())


ALLOCATIONS = pytest.mark.parametrize("allocation", [uniform, Global()], ids=["uniform", "all"])


MODELS = pytest.mark.parametrize("make", [bert, distilbert])


@MODELS
@ALLOCATIONS
@pytest.mark.parametrize("scope", ["attention", "encoder"])
def test_attention_heads_same_heads_in_all_matrices(make, allocation, scope):
    weights = {n: w for n, w in matrices(make()).items() if scope == "encoder" or "attention" in n}
    masks = {name: ones(*weight.shape) for name, weight in weights.items()}
    granularity = AttentionHeads(size=8)
    assert isinstance(granularity, CrossTensorGranularity)
    before = {name: mask.clone() for name, mask in masks.items()}
    for sparsity in (0.1, 0.3, 0.5, 0.6):
        counts, promised = update(
            weights, masks, granularity, allocation, sparsity, disturb=lambda w, m: w.mul_(2.0)
        )
        layers = layers_of(masks)
        assert len(layers) == 3
        for heads in layers:
            assert heads == [heads[0]] * 4
        for name, mask in masks.items():
            assert not (mask & ~before[name]).any()
            before[name] = mask.clone()
            if allocation is uniform:
                assert (~mask).sum() == promised[name]
            if "attention" not in name:
                assert promised[name] == counts[name]
    if allocation is uniform:
        assert [heads[0].count(False) for heads in layers] == [2, 2, 2]  # round(0.6 · 4)
    if scope == "attention" and allocation is not uniform:
        assert sum(heads[0].count(False) for heads in layers) == 7  # round(0.6 · 12)


def test_attention_heads_smallest_means_are_pruned():
    weights = matrices(bert())
    names = [name for name in weights if "layer.1.attention" in name]
    masks = {name: ones(32, 32) for name in names}
    means = []
    for head in range(4):
        span = slice(8 * head, 8 * head + 8)
        parts = [weights[n][:, span] if "output" in n else weights[n][span] for n in names]
        means.append(torch.cat([part.detach().abs().flatten() for part in parts]).mean().item())
    score = {name: weights[name].detach().abs() for name in names}.get
    granularity = AttentionHeads(size=8)
    new = dict(granularity.masks_for_model(masks, score, dict.fromkeys(names, 512)))
    gone = sorted(range(4), key=means.__getitem__)[:2]
    assert heads_left(new[names[0]], axis=0) == [head not in gone for head in range(4)]
    levelled = granularity.pool_scores(masks, score)
    for name in names:
        grid = levelled(name).T if "output" in name else levelled(name)
        np.testing.assert_allclose(grid[::8, 0].numpy(), means, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_attention_heads_ties_prune_lower_index(value):
    masks = {name: ones(32, 32) for name in matrices(bert()) if "layer.0.attention" in name}
    new = dict(
        AttentionHeads(size=8).masks_for_model(
            masks, lambda name: torch.full((32, 32), value), dict.fromkeys(masks, 512)
        )
    )
    assert layers_of(new) == [[[False, False, True, True]] * 4]


def test_attention_heads_counts_of_a_layer_are_summed():
    names = [name for name in matrices(bert()) if "layer.0.attention" in name]
    masks = {name: ones(32, 32) for name in names}
    counts = dict(zip(names, (1024, 0, 300, 212), strict=True))  # 1536 of 4096: 1.5 heads
    granularity = AttentionHeads(size=8)
    assert reachable_counts(granularity, dict.fromkeys(names, (32, 32)), counts) == dict.fromkeys(
        names, 512
    )
    new = dict(granularity.masks_for_model(masks, lambda name: randn(32, 32), counts))
    assert all((~mask).sum() == 512 for mask in new.values())


@MODELS
def test_attention_heads_pruned_head_adds_nothing_despite_biases(make):
    model = make()
    weights = matrices(model)
    masks = {name: ones(*weight.shape) for name, weight in weights.items() if "attention" in name}
    update({n: weights[n] for n in masks}, masks, AttentionHeads(size=8), uniform, 0.5)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        expected = model(tokens).last_hidden_state
        for name, mask in masks.items():
            if not is_output(name):
                bias = name.removeprefix("model.").replace(".weight", ".bias")
                model.get_parameter(bias).masked_fill_(~mask.any(1), 5.0)
        found = model(tokens).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_attention_heads_other_tensors_use_others():
    weights = matrices(bert())
    masks = {name: ones(*weight.shape) for name, weight in weights.items()}
    update(weights, masks, AttentionHeads(size=8, others=Rows()), uniform, 0.5)
    for name, mask in masks.items():
        if "attention" not in name:
            assert torch.equal(mask.any(1), mask.all(1))
            assert (~mask).sum() == mask.numel() // 2
    shapes = {name: mask.shape for name, mask in masks.items()}
    with pytest.raises(ValueError, match=r"m=5: .*layer.0.intermediate.dense.weight: does not"):
        reachable_counts(
            AttentionHeads(size=8, others=NM(m=5)),
            shapes,
            {n: m.numel() for n, m in masks.items()},
        )


def test_attention_layers_are_found_or_raise():
    shapes = {name: tuple(weight.shape) for name, weight in matrices(bert()).items()}
    granularity = AttentionHeads(size=8)
    assert len(granularity.attention_layers(shapes)) == 3
    dense = {name: shape for name, shape in shapes.items() if "attention" not in name}
    with pytest.raises(ValueError, match=r"none of the patterns matches .*intermediate"):
        granularity.attention_layers(dense)
    key = "model.encoder.layer.1.attention.self.key.weight"
    with pytest.raises(ValueError, match=f"{key} is not in scope"):
        granularity.attention_layers({name: shape for name, shape in shapes.items() if name != key})
    with pytest.raises(ValueError, match=f"{key}: .*tiles of 8 × 32"):
        granularity.attention_layers(shapes | {key: (30, 32)})
    with pytest.raises(ValueError, match="different numbers of heads"):
        granularity.attention_layers(shapes | {key: (16, 32)})
    with pytest.raises(ValueError, match="tiles of 5 × 32"):
        AttentionHeads(size=5).attention_layers(shapes)
