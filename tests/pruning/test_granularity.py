import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from kd_prune.pruning import (
    ERK,
    Bounded,
    Global,
    Pruner,
    Schedule,
    Threshold,
    exact,
    layerwise,
)
from kd_prune.pruning.granularity import Granularity, Joint, chosen, pooled, reached
from kd_prune.pruning.heads import AttentionHeads
from kd_prune.pruning.mask import pruned_in
from kd_prune.pruning.nm import NM
from kd_prune.pruning.tiles import Block, Heads, Rows

# The second way is that of other devices: it runs on the CPU too.
WAYS = pytest.mark.parametrize("on_cpu", [True, False], ids=["numpy", "torch"])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def taking_a(masks, score, sparsity):
    """An allocation of one's own."""
    return {"a": 64, "b": 0}


def drawn(draw, shape, elements, dtype=np.float32):
    return draw(hnp.arrays(dtype, shape, elements=elements, fill=st.nothing()))


def tied(draw, shape):
    """Few distinct values, so that most examples tie."""
    return drawn(draw, shape, st.integers(-2, 2).map(float))


@st.composite
def nm_problems(draw):
    of = draw(st.integers(2, 5))
    pattern = NM(keep=draw(st.integers(1, of - 1)), of=of)
    scores = tied(draw, (draw(st.integers(1, 3)), of * draw(st.integers(1, 3))))
    kept = draw(st.one_of(st.just(np.ones(scores.shape, bool)), hnp.arrays(bool, scores.shape)))
    limit = scores.size * (of - pattern.keep) // of
    return pattern, scores, draw(st.integers(0, limit)), kept


@st.composite
def tilings(draw):
    """A granularity, and the number of rows and columns of tiles and of a tile."""
    kind = draw(st.sampled_from([Block, Rows, Heads]))
    down, across, rows, columns = (draw(st.integers(1, 3)) for _ in range(4))
    if kind is Block:
        return Block(rows=rows, columns=columns), down, across, rows, columns
    if kind is Rows:
        return Rows(), down, 1, 1, columns
    axis = draw(st.integers(0, 1))
    heads = Heads(size=columns if axis else rows, axis=axis)
    return heads, *((1, across) if axis else (down, 1)), rows, columns


@st.composite
def tile_problems(draw, scattered=False):
    granularity, down, across, rows, columns = draw(tilings())
    scores = tied(draw, (down * rows, across * columns))
    whole = draw(hnp.arrays(bool, (down, across)))
    kept = np.kron(whole, np.ones((rows, columns), bool)).astype(bool)
    if scattered:
        kept = kept & draw(hnp.arrays(bool, kept.shape))
    return granularity, scores, draw(st.integers(0, scores.size)), kept


def tiles_of(granularity, shape):
    """The slices of each tile, row by row."""
    height, width = shape[0], math.prod(shape[1:])
    rows, columns = granularity.tile(shape)
    return [
        (slice(top, top + rows), slice(start, start + columns))
        for top in range(0, height, rows)
        for start in range(0, width, columns)
    ]


def nm_oracle(pattern, scores, count, kept):
    """Walk all weights by score and index; prune where the group still has too many."""
    of, free = pattern.of, pattern.of - pattern.keep
    mask, values = kept.copy().reshape(-1, of), scores.reshape(-1, of)
    at_risk = []
    for group in range(len(mask)):
        alive = sorted((values[group, i], i) for i in range(of) if mask[group, i])
        spare = len(alive) - pattern.keep
        at_risk += [(score, group * of + i) for score, i in alive[: max(spare, 0)]]
    more = count - sum(min(int((~row).sum()), free) for row in mask)
    for _, index in sorted(at_risk)[: max(more, 0)]:
        mask.reshape(-1)[index] = False
    return mask.reshape(kept.shape)


def tile_oracle(granularity, scores, count, kept):
    """Remove tiles one by one, the smallest mean first, while that brings the count nearer.

    The last stays, unless everything was asked for.
    """
    mask = kept.copy()
    tiles = [tile for tile in tiles_of(granularity, scores.shape) if mask[tile].any()]
    for tile in sorted(tiles, key=lambda tile: scores[tile].astype(float).mean()):  # stable
        gone, cost = int((~mask).sum()), int(mask[tile].sum())
        last = gone + cost == mask.size and count < mask.size
        if abs(gone + cost - count) < abs(gone - count) and not last:
            mask[tile] = False
        else:
            break
    return mask


@WAYS
@given(nm_problems(), DTYPES)
def test_nm_against_a_walk(on_cpu, problem, dtype):
    pattern, scores, count, kept = problem
    with patch("kd_prune.pruning.mask.on_cpu", return_value=on_cpu):
        mask = pattern(torch.from_numpy(scores).to(dtype), count, torch.from_numpy(kept))
    np.testing.assert_array_equal(mask.numpy(), nm_oracle(pattern, scores, count, kept))


@given(nm_problems())
def test_nm_prunes_as_many_as_it_says(problem):
    pattern, scores, count, kept = problem
    mask = pattern(torch.from_numpy(scores), count, torch.from_numpy(kept)).numpy()
    free = pattern.of - pattern.keep
    in_pattern = np.minimum((~mask).reshape(-1, pattern.of).sum(1), free).sum()
    before = np.minimum((~kept).reshape(-1, pattern.of).sum(1), free).sum()
    assert in_pattern == max(count, before)
    assert pattern.reachable(count, scores.shape) == count
    if kept.all():
        assert (~mask).sum() == count


@given(nm_problems())
def test_nm_at_its_limit_leaves_keep_of_every_group(problem):
    pattern, scores, _, kept = problem
    limit = scores.size * (pattern.of - pattern.keep) // pattern.of
    mask = pattern(torch.from_numpy(scores), limit, torch.from_numpy(kept)).numpy()
    left = mask.reshape(-1, pattern.of).sum(1)
    np.testing.assert_array_equal(
        left, np.minimum(kept.reshape(-1, pattern.of).sum(1), pattern.keep)
    )


def test_nm_fills_up_along_a_ramp_though_the_weights_move():
    kept = ones(6, 16)
    for step, count in enumerate([0, 7, 20, 33, 47, 48]):
        before, kept = kept, NM()(randn(6, 16, seed=step).abs(), count, kept)
        assert not (kept & ~before).any()
        assert (~kept).sum() == count
        assert (kept.view(-1, 4).sum(1) >= 2).all()
    assert (kept.view(-1, 4).sum(1) == 2).all()


@given(st.one_of(nm_problems(), tile_problems(), tile_problems(scattered=True)), st.data())
def test_masks_are_nested_monotone_and_the_same_every_time(problem, data):
    granularity, scores, count, kept = problem
    scores, kept = torch.from_numpy(scores), torch.from_numpy(kept)
    as_given = scores.clone(), kept.clone()
    fewer = data.draw(st.integers(0, count))
    few, many = granularity(scores, fewer, kept), granularity(scores, count, kept)
    assert not (few & ~kept).any()
    assert not (many & ~few).any()
    assert granularity.reachable(fewer, kept.shape) <= granularity.reachable(count, kept.shape)
    assert torch.equal(many, granularity(scores, count, kept))
    assert torch.equal(scores, as_given[0])
    assert torch.equal(kept, as_given[1])


@given(st.one_of(nm_problems(), tile_problems()), st.data())
def test_in_two_goes_is_the_same(problem, data):
    granularity, scores, count, kept = problem
    scores, kept = torch.from_numpy(scores), torch.from_numpy(kept)
    first = granularity(scores, data.draw(st.integers(0, count)), kept)
    assert torch.equal(granularity(scores, count, first), granularity(scores, count, kept))


@WAYS
@given(tile_problems(scattered=True), DTYPES)
def test_tiles_against_removing_one_by_one(on_cpu, problem, dtype):
    granularity, scores, count, kept = problem
    size = math.prod(granularity.tile(scores.shape))
    intact = all(kept[tile].sum() in (0, size) for tile in tiles_of(granularity, scores.shape))
    if intact:  # half a tile: `round` goes to the even number of tiles, the oracle to the fewer
        count = granularity.reachable(count, scores.shape)
    with patch("kd_prune.pruning.mask.on_cpu", return_value=on_cpu):
        mask = granularity(torch.from_numpy(scores).to(dtype), count, torch.from_numpy(kept))
    np.testing.assert_array_equal(mask.numpy(), tile_oracle(granularity, scores, count, kept))


@given(tile_problems())
def test_whole_tiles_go_as_many_as_promised(problem):
    granularity, scores, count, kept = problem
    mask = granularity(torch.from_numpy(scores), count, torch.from_numpy(kept)).numpy()
    tiles = tiles_of(granularity, scores.shape)
    size = scores.size // len(tiles)
    assert all(mask[tile].all() or not mask[tile].any() for tile in tiles)
    promised = granularity.reachable(count, scores.shape)
    spared = 1 if count < scores.size else 0
    assert promised == min(round(count / size), len(tiles) - spared) * size
    assert (~mask).sum() == max(promised, (~kept).sum())


@given(st.one_of(tile_problems(), tile_problems(scattered=True)))
def test_the_best_tiles_survive(problem):
    granularity, scores, count, kept = problem
    mask = granularity(torch.from_numpy(scores), count, torch.from_numpy(kept)).numpy()
    alive = [tile for tile in tiles_of(granularity, scores.shape) if kept[tile].any()]
    went = [scores[tile].mean() for tile in alive if not mask[tile].any()]
    stayed = [scores[tile].mean() for tile in alive if mask[tile].any()]
    assert max(went, default=-np.inf) <= min(stayed, default=np.inf)


@given(tile_problems(scattered=True))
def test_scattered_zeros_are_counted(problem):
    granularity, scores, count, kept = problem
    mask = granularity(torch.from_numpy(scores), count, torch.from_numpy(kept)).numpy()
    size = math.prod(granularity.tile(scores.shape))
    left = sum(mask[tile].any() for tile in tiles_of(granularity, scores.shape))
    if (~kept).sum() <= count:
        assert (~mask).sum() - count <= size / 2
        assert count - (~mask).sum() <= size / 2 or left == 1
    assert left or count == scores.size or not kept.any()


def test_tiles_of_the_same_values_tie_in_whatever_order_they_hold_them():
    values, orders = randn(32).abs(), torch.Generator().manual_seed(1)
    rows = torch.stack([values[torch.randperm(32, generator=orders)] for _ in range(20)])
    assert len(rows.sum(1).unique()) > 1  # the sums differ in float32
    for select, scores in ((Rows(), rows), (Heads(size=1, axis=1), rows.T)):
        mask = select(scores, 10 * 32, ones(*scores.shape))
        assert mask.any(1 - list(scores.shape).index(20)).tolist() == [False] * 10 + [True] * 10


@pytest.mark.parametrize(
    "granularity",
    [
        NM(),
        NM(keep=1, of=3),
        Block(rows=2, columns=9),
        Rows(),
        Heads(size=4),
        Heads(size=6, axis=1),
    ],
    ids=str,
)
def test_convolutions_are_flattened(granularity):
    scores = randn(8, 4, 3, 3).abs()
    flat = granularity(scores.flatten(1), 100, ones(8, 36)).view(8, 4, 3, 3)
    assert torch.equal(granularity(scores, 100, ones(8, 4, 3, 3)), flat)
    strided = scores.to(memory_format=torch.channels_last)
    kept = ones(8, 4, 3, 3).to(memory_format=torch.channels_last)
    assert torch.equal(granularity(strided, 100, kept), flat)
    assert isinstance(granularity, Granularity)
    assert granularity.level(scores).shape == scores.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NM(keep=0), "keep=0: expected a positive integer"),
        (lambda: NM(keep=4), "keep=4: expected less than of=4"),
        (lambda: NM(of=4.0), "of=4.0: expected a positive integer"),
        (lambda: Block(rows=0), "rows=0"),
        (lambda: Block(columns=True), "columns=True"),
        (lambda: Heads(size=-1), "size=-1"),
        (lambda: Heads(axis=2), "axis=2: expected 0"),
        (lambda: AttentionHeads(size=0), "size=0"),
        (lambda: AttentionHeads(groups={"*.q": 0}), "expected a list of mappings"),
        (lambda: AttentionHeads(groups=[{"q": 0}]), r"pattern 'q': expected one '\*'"),
        (lambda: AttentionHeads(groups=[{"*.q": 2}]), "axis=2: expected 0 or 1"),
    ],
)
def test_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("granularity", "shape", "message"),
    [
        (NM(), (4, 6), r"of=4 does not divide the 6 inputs of shape \(4, 6\)"),
        (NM(), (4, 1, 3, 3), "of=4 does not divide the 9 inputs"),
        (Block(), (32, 40), r"tiles of 32 × 32, which do not divide .* shape \(32, 40\)"),
        (Heads(size=3), (4, 6), "tiles of 3 × 6"),
        (Heads(size=4, axis=1), (4, 6), "tiles of 4 × 4"),
        (NM(), (4,), r"shape \(4,\): expected two dimensions"),
        (Rows(), (4,), r"shape \(4,\): expected two dimensions"),
    ],
)
def test_shapes_are_refused(granularity, shape, message):
    with pytest.raises(ValueError, match=message):
        granularity(torch.zeros(shape), 0, ones(*shape))
    with pytest.raises(ValueError, match=f"^the.name: .*{message}"):
        reached(granularity, {"the.name": shape}, {"the.name": 0})


@pytest.mark.parametrize(("pattern", "final"), [(NM(), "0.5"), (NM(keep=1), "0.75")])
def test_no_more_than_its_pattern_is_asked_of_nm(pattern, final):
    weights = {"a": nn.Parameter(randn(8, 8)), "b": nn.Parameter(randn(8, 8, seed=1))}
    of = {"total_steps": 8, "select": pattern}
    with pytest.raises(ValueError, match=rf"^a: .*reaches sparsity {final} .*take final={final}"):
        Pruner(weights, Schedule(final=float(final) + 0.02), **of)
    assert pruned_in(pattern(weights["a"].detach(), 64, ones(8, 8))) == float(final) * 64


@pytest.mark.parametrize("allocation", [Global(), Global(normalized=True), Threshold(), taking_a])
def test_nm_is_refused_where_one_tensor_may_lose_more_than_its_pattern(allocation):
    """Though the weights as they are would allow it: the two tensors' scores are alike."""
    weights = {"a": nn.Parameter(randn(8, 8)), "b": nn.Parameter(randn(8, 8))}
    with pytest.raises(ValueError, match=r"^a: .*Global: ceiling=0\.5"):
        Pruner(weights, Schedule(final=0.3), total_steps=8, select=NM(), allocation=allocation)


@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.45, 0.6])
@pytest.mark.parametrize(
    "allocation",
    [layerwise, ERK(power=0.0), Global(ceiling=0.5), Bounded(allocation=Global(), ceiling=0.5)],
)
def test_nm_reaches_its_pattern_from_any_zeros_and_along_any_scores(zeros, allocation):
    weights = {"a": nn.Parameter(randn(8, 8)), "b": nn.Parameter(randn(16, 8, seed=1))}
    with torch.no_grad():
        for weight in weights.values():
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < zeros] = 0
    pruner = Pruner(
        weights, Schedule(final=0.5), total_steps=20, select=NM(), allocation=allocation
    )
    for step in range(1, 21):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(1.5 if (step % 2) == (name == "a") else 0.5)
        pruner.update(step)
        pruner.project()
    for weight in weights.values():
        assert (weight.view(-1, 4).count_nonzero(1) <= 2).all()


@pytest.mark.parametrize(
    ("select", "final", "got"), [(Rows(), 0.95, 0.875), (Block(), 0.1, 0.0), (Block(), 0.9, 0.75)]
)
def test_a_target_that_groups_miss_by_far_is_warned_of(select, final, got):
    weight = nn.Parameter(randn(8, 16) if isinstance(select, Rows) else randn(64, 64))
    with pytest.warns(UserWarning, match=rf"comes to sparsity {got:g} where"):
        Pruner({"weight": weight}, Schedule(final=final), total_steps=8, select=select)


# The conversion checks nothing: what does not fit the pattern is lost on the way there and back.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_2_of_4_survives_torchs_compression(dtype):
    weight = randn(64, 128) * 20
    weight = weight.sign() * (weight.abs() + 1)  # no zero in int8 either
    final = NM()(weight.abs(), weight.numel() // 2, ones(64, 128))
    almost = NM()(weight.abs(), weight.numel() // 2 - 1, ones(64, 128))
    for mask, survives in ((final, True), (almost, False)):
        pruned = (weight * mask).to(dtype)
        packed = sparse_semi_structured_from_dense_cutlass(pruned)
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(*packed), pruned) == survives


def test_1_of_2_survives_torchs_compression_in_float32():
    # Whole numbers: the way back copies floats as pairs of halves, and some halves are NaN.
    weight = (randn(32, 64) * 100).round() + 0.5
    mask = NM(keep=1, of=2)(weight.abs(), weight.numel() // 2, ones(32, 64))
    packed = sparse_semi_structured_from_dense_cutlass(weight * mask)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(*packed), weight * mask)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's 2:4 kernels need CUDA")
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
def test_2_of_4_runs_in_torchs_kernel():
    weight = randn(128, 256).cuda().half()
    mask = NM()(weight.abs(), weight.numel() // 2, torch.ones_like(weight, dtype=torch.bool))
    pruned, inputs = weight * mask, randn(64, 256, seed=1).cuda().half()
    sparse = torch.sparse.to_sparse_semi_structured(pruned)
    torch.testing.assert_close(
        nn.functional.linear(inputs, sparse), inputs @ pruned.T, rtol=1e-2, atol=1e-1
    )


@pytest.mark.parametrize(
    ("select", "final", "got"),
    [(NM(), 0.5, 0.5), (Block(rows=2, columns=4), 0.7, 0.6875), (Rows(), 0.7, 0.75)],
)
def test_in_a_pruner(select, final, got):
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    pruner = Pruner(
        {"weight": layer.weight}, Schedule(final=final), total_steps=8, updates=4, select=select
    )
    for step in range(1, 9):
        with torch.no_grad():
            layer.weight.add_(0.1 * randn(8, 16, seed=step))
        pruner.update(step)
        pruner.project()
    assert pruner.sparsity == got
    assert pruner.sparsity == select.reachable(round(final * 128), (8, 16)) / 128
    if isinstance(select, NM):
        assert (pruner.masks["weight"].view(-1, 4).sum(1) == 2).all()


def test_global_ranks_what_goes_together():
    weights = {"a": randn(4, 8).abs(), "b": 0.5 + randn(4, 8, seed=1).abs(), "c": randn(2, 8).abs()}
    masks = {name: ones(*weight.shape) for name, weight in weights.items()}
    select = Rows()
    counts = Global()(masks, pooled(select, masks, weights.get), 0.5)
    new = dict(chosen(select, masks, weights.get, counts))
    rows = torch.cat([weight.mean(1) for weight in weights.values()])
    expected = rows > rows.sort().values[4]  # 5 of 10 rows
    assert torch.equal(torch.cat([new[name].any(1) for name in weights]), expected)
    assert counts == reached(select, {n: m.shape for n, m in masks.items()}, counts)


def test_global_ranks_heads_and_what_the_others_lose_together():
    weights = {name: weight.detach().abs() for name, weight in matrices(bert()).items()}
    masks = {name: ones(*weight.shape) for name, weight in weights.items()}
    levelled = pooled(AttentionHeads(size=8, others=Rows()), masks, weights.get)
    for name, weight in weights.items():
        if "attention" in name:
            per_head = levelled(name).T if is_output(name) else levelled(name)
            assert len(per_head.unique()) == 4
            query = name.split(".attention.")[0] + ".attention.self.query.weight"
            assert torch.equal(per_head, levelled(query))
        else:
            assert torch.equal(levelled(name), Rows().level(weight))


def test_a_plain_function_is_asked_tensor_by_tensor():
    asked = []

    def score(name):
        asked.append(name)
        return torch.tensor([[2.0, 1.0]])

    masks = {"a": ones(1, 2), "b": ones(1, 2)}
    assert pooled(exact, masks, score) is score
    news = chosen(exact, masks, score, {"a": 1, "b": 0})
    name, mask = next(news)
    assert (name, mask.tolist(), asked) == ("a", [[True, False]], ["a"])
    assert [name for name, _ in news] == ["b"]


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


def update(weights, masks, select, allocation, sparsity, disturb=None):
    """What the Pruner does at an update; gives the counts that were asked for and promised."""

    def score(name):
        return weights[name].detach().abs()

    counts = allocation(masks, pooled(select, masks, score), sparsity)
    promised = reached(select, {name: mask.shape for name, mask in masks.items()}, counts)
    for name, mask in chosen(select, masks, score, counts):
        masks[name].copy_(mask)
        with torch.no_grad():
            weights[name].mul_(mask)
            if disturb:
                disturb(weights[name], mask)
    return counts, promised


def is_output(name):
    return "output.dense" in name or "out_lin" in name


def heads_left(mask, axis, size=8):
    """Per head whether it is there; whole heads only."""
    per_head = (mask if axis == 0 else mask.T).unflatten(0, (-1, size)).flatten(1)
    assert torch.equal(per_head.any(1), per_head.all(1))
    return per_head.any(1).tolist()


def layers_of(masks):
    """Per layer which heads query, key, value and output projection have."""
    found = {}
    for name, mask in masks.items():
        if "attention" in name:
            heads = heads_left(mask, axis=int(is_output(name)))
            found.setdefault(name.split(".attention.")[0], []).append(heads)
    assert all(len(heads) == 4 for heads in found.values())
    return list(found.values())


ALLOCATIONS = pytest.mark.parametrize("allocation", [layerwise, Global()], ids=["layerwise", "all"])
MODELS = pytest.mark.parametrize("make", [bert, distilbert])


@MODELS
@ALLOCATIONS
@pytest.mark.parametrize("scope", ["attention", "encoder"])
def test_an_attention_loses_the_same_heads_everywhere(make, allocation, scope):
    weights = {n: w for n, w in matrices(make()).items() if scope == "encoder" or "attention" in n}
    masks = {name: ones(*weight.shape) for name, weight in weights.items()}
    select = AttentionHeads(size=8)
    assert isinstance(select, Joint)
    before = {name: mask.clone() for name, mask in masks.items()}
    for sparsity in (0.1, 0.3, 0.5, 0.6):
        counts, promised = update(
            weights, masks, select, allocation, sparsity, disturb=lambda w, m: w.mul_(2.0)
        )
        layers = layers_of(masks)
        assert len(layers) == 3
        for heads in layers:
            assert heads == [heads[0]] * 4
        for name, mask in masks.items():
            assert not (mask & ~before[name]).any()
            before[name] = mask.clone()
            if allocation is layerwise:
                assert (~mask).sum() == promised[name]
            if "attention" not in name:
                assert promised[name] == counts[name]
    if allocation is layerwise:
        assert [heads[0].count(False) for heads in layers] == [2, 2, 2]  # round(0.6 · 4)
    if scope == "attention" and allocation is not layerwise:
        assert sum(heads[0].count(False) for heads in layers) == 7  # round(0.6 · 12)


def test_the_heads_of_the_smallest_mean_go():
    weights = matrices(bert())
    names = [name for name in weights if "layer.1.attention" in name]
    masks = {name: ones(32, 32) for name in names}
    means = []
    for head in range(4):
        span = slice(8 * head, 8 * head + 8)
        parts = [weights[n][:, span] if "output" in n else weights[n][span] for n in names]
        means.append(torch.cat([part.detach().abs().flatten() for part in parts]).mean().item())
    score = {name: weights[name].detach().abs() for name in names}.get
    select = AttentionHeads(size=8)
    new = dict(select.together(masks, score, dict.fromkeys(names, 512)))
    gone = sorted(range(4), key=means.__getitem__)[:2]
    assert heads_left(new[names[0]], axis=0) == [head not in gone for head in range(4)]
    levelled = select.pool(masks, score)
    for name in names:
        grid = levelled(name).T if "output" in name else levelled(name)
        np.testing.assert_allclose(grid[::8, 0].numpy(), means, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_heads_go_from_the_front_in_every_matrix(value):
    masks = {name: ones(32, 32) for name in matrices(bert()) if "layer.0.attention" in name}
    new = dict(
        AttentionHeads(size=8).together(
            masks, lambda name: torch.full((32, 32), value), dict.fromkeys(masks, 512)
        )
    )
    assert layers_of(new) == [[[False, False, True, True]] * 4]


def test_counts_that_differ_within_a_layer_are_taken_together():
    names = [name for name in matrices(bert()) if "layer.0.attention" in name]
    masks = {name: ones(32, 32) for name in names}
    counts = dict(zip(names, (1024, 0, 300, 212), strict=True))  # 1536 of 4096: 1.5 heads
    select = AttentionHeads(size=8)
    assert reached(select, dict.fromkeys(names, (32, 32)), counts) == dict.fromkeys(names, 512)
    new = dict(select.together(masks, lambda name: randn(32, 32), counts))
    assert all((~mask).sum() == 512 for mask in new.values())


@MODELS
def test_a_removed_head_adds_nothing_though_its_biases_stay(make):
    model = make()
    weights = matrices(model)
    masks = {name: ones(*weight.shape) for name, weight in weights.items() if "attention" in name}
    update({n: weights[n] for n in masks}, masks, AttentionHeads(size=8), layerwise, 0.5)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        expected = model(tokens).last_hidden_state
        for name, mask in masks.items():
            if not is_output(name):
                bias = name.removeprefix("model.").replace(".weight", ".bias")
                model.get_parameter(bias).masked_fill_(~mask.any(1), 5.0)
        found = model(tokens).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_what_is_in_no_attention_goes_its_own_way():
    weights = matrices(bert())
    masks = {name: ones(*weight.shape) for name, weight in weights.items()}
    update(weights, masks, AttentionHeads(size=8, others=Rows()), layerwise, 0.5)
    for name, mask in masks.items():
        if "attention" not in name:
            assert torch.equal(mask.any(1), mask.all(1))
            assert (~mask).sum() == mask.numel() // 2
    shapes = {name: mask.shape for name, mask in masks.items()}
    with pytest.raises(ValueError, match=r"layer.0.intermediate.dense.weight: of=5 does not"):
        reached(
            AttentionHeads(size=8, others=NM(of=5)),
            shapes,
            {n: m.numel() for n, m in masks.items()},
        )


def test_attentions_are_found_or_missed():
    shapes = {name: tuple(weight.shape) for name, weight in matrices(bert()).items()}
    select = AttentionHeads(size=8)
    assert len(select.attentions(shapes)) == 3
    dense = {name: shape for name, shape in shapes.items() if "attention" not in name}
    with pytest.raises(ValueError, match=r"none of their patterns matches .*intermediate"):
        select.attentions(dense)
    key = "model.encoder.layer.1.attention.self.key.weight"
    with pytest.raises(ValueError, match=f"{key} is not in scope"):
        select.attentions({name: shape for name, shape in shapes.items() if name != key})
    with pytest.raises(ValueError, match=f"{key}: .*tiles of 8 × 32"):
        select.attentions(shapes | {key: (30, 32)})
    with pytest.raises(ValueError, match="unlike numbers of heads"):
        select.attentions(shapes | {key: (16, 32)})
    with pytest.raises(ValueError, match="tiles of 5 × 32"):
        AttentionHeads(size=5).attentions(shapes)
