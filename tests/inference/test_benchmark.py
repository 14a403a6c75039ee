"""Times of engines that take turns, and the figure."""

import time

import pytest
import torch
from torch import nn

pytest.importorskip("llvmlite", reason="pip install 'kd_prune[cpu]'")

from kd_prune.inference import benchmark, crossover, figure
from kd_prune.inference.benchmark import BFLOAT16, BLAS, INT8, ONEDNN, OURS, Timing
from kd_prune.inference.jit.target import host
from tests.inference.models import batch, blocked_model, sparse_model


class Sleeper(nn.Module):
    """Takes as long as it is told, and remembers who was called."""

    def __init__(self, name, seconds, log):
        super().__init__()
        self.name, self.seconds, self.log = name, seconds, log

    def forward(self, input_ids, attention_mask):
        self.log.append(self.name)
        time.sleep(self.seconds)


def test_models_take_turns_and_the_first_round_does_not_count():
    log = []
    models = {name: Sleeper(name, 0.002, log) for name in "ab"}
    work = benchmark.batches([5] * 6, 4, 50)
    timings = benchmark.measure(models, work, rounds=3)
    assert log == ["a", "a", "b", "b"] * 4  # both batches are one turn
    for timing in timings:
        assert (timing.batch_size, timing.sentences) == (4, 6)
        assert (len(timing.rounds), len(timing.calls)) == (3, 6)
        assert all(seconds >= 0.002 for seconds in timing.calls)
        assert sum(timing.rounds) == pytest.approx(sum(timing.calls))


def test_a_turn_is_a_few_batches():
    log = []
    models = {name: Sleeper(name, 0, log) for name in "ab"}
    benchmark.measure(models, benchmark.batches([5] * 10, 1, 50), rounds=1)
    assert log == (["a"] * 8 + ["b"] * 8 + ["a"] * 2 + ["b"] * 2) * 2


@pytest.mark.parametrize(("busy", "slept"), [(0, 1), (3, 4), (10**9, 25)])
def test_a_turn_begins_when_the_threads_before_are_idle(busy, slept, monkeypatch):
    """`busy`: windows in which the process computes; it gives up after a tenth of a second."""
    clock = {"wall": 0.0, "cpu": 0.0, "sleeps": 0}

    def sleep(seconds):
        clock["sleeps"] += 1
        clock["wall"] += seconds
        clock["cpu"] += seconds * 0.9 if clock["sleeps"] <= busy else seconds * 0.1

    monkeypatch.setattr(benchmark.time, "sleep", sleep)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(benchmark.time, "process_time", lambda: clock["cpu"])
    benchmark.settle(window=0.004, limit=0.1)
    assert clock["sleeps"] == pytest.approx(slept, abs=1 if slept == 25 else 0)


def test_timing_is_summed_up_by_medians():
    timing = Timing("x", 8, 40, (2.0, 1.0, 10.0), tuple(range(1, 102)))
    assert timing.sentences_per_second == 20
    assert timing.median == 51
    assert timing.p95 == 96
    assert Timing("x", 8, 16, (3.0,), (1.0, 2.0)).p95 == 2


def test_speed_up_is_to_the_better_of_the_dense_engines_in_the_same_round():
    def timing(name, *rounds):
        return Timing(name, 1, 1, rounds, rounds)

    timings = [timing(BLAS, 8, 9, 9), timing(ONEDNN, 4, 6, 20), timing(BFLOAT16, 1, 1, 1)]
    timings.append(timing(OURS, 1, 2, 10))
    assert benchmark.speed_up(timings) == 4.5  # to BLAS, 26 s against 30 s: 8, 4.5, 0.9
    assert benchmark.speed_up(timings, BLAS) == 1


def test_batches_are_of_similar_length_and_mask_the_rest():
    work = benchmark.batches([3, 9, 4, 8, 5], 2, 50)
    assert [list(one["input_ids"].shape) for one in work] == [[2, 4], [2, 8], [1, 9]]
    assert [one["attention_mask"].sum(1).tolist() for one in work] == [[3, 4], [5, 8], [9]]
    assert all(one["input_ids"].max() < 50 for one in work)


def test_padded_sentences_keep_their_tokens():
    (one,) = benchmark.padded([[7, 8, 9], [5]], 2)
    assert one["input_ids"].tolist() == [[5, 0, 0], [7, 8, 9]]
    assert one["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_differences_are_relative_and_over_real_tokens():
    expected = torch.tensor([[[1.0, -4.0], [9.0, 9.0]]])
    found = torch.tensor([[[1.0, -3.0], [0.0, 0.0]]])
    engines = {BLAS: lambda **batch: (expected,), "other": lambda **batch: (found,)}
    one = {"input_ids": torch.zeros(1, 2), "attention_mask": torch.tensor([[1, 0]])}
    assert benchmark.differences(engines, one) == {BLAS: 0, "other": 0.25}
    engines["other"] = lambda **batch: (torch.full_like(expected, torch.nan),)
    apart = benchmark.differences(engines, one)["other"]
    assert benchmark.suspicious("other", apart)


def test_a_difference_is_suspicious_where_it_is_more_than_rounding():
    assert not benchmark.suspicious("ONNX Runtime fp32", 1e-4)
    assert benchmark.suspicious("ONNX Runtime fp32", 1e-2)
    assert not benchmark.suspicious("OpenVINO int8 (nncf)", 0.2)
    assert benchmark.suspicious("torch bf16", 1.5)


def test_copy_with_other_sparsity_has_random_weights_in_some_matrices():
    model = sparse_model("bert", 0.9)
    names = {name for name, w in model.named_parameters() if ".layer.0." in name and w.ndim == 2}
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    copies = [benchmark.with_sparsity(model, names, 0.75) for _ in range(2)]
    for name, weight in copies[0].named_parameters():
        assert torch.equal(weight, copies[1].get_parameter(name))
        if name in names:
            assert float((weight == 0).float().mean()) == pytest.approx(0.75, abs=0.03)
        else:
            assert weight is model.get_parameter(name)
    assert all(torch.equal(before[name], w) for name, w in model.named_parameters())
    assert benchmark.sparsity_of(copies[0], names) == pytest.approx(0.75, abs=0.01)
    assert benchmark.sparsity_of(benchmark.with_sparsity(model, names, 0.0), names) == 0


@pytest.fixture
def all_gain(monkeypatch):
    """Every sparse product takes no time."""
    costs = crossover.Costs(dense=1.0, fixed=0.0, per_step=0.0)
    monkeypatch.setattr(crossover, "measure", lambda *shape: costs)


@pytest.mark.usefixtures("all_gain")
def test_all_engines_compute_the_same():
    model = blocked_model("bert", 0.95)
    models = benchmark.engines(model, bfloat16=True)
    int8 = [INT8] if host().int8 else []
    assert list(models) == [BLAS, ONEDNN, BFLOAT16, OURS, *int8]
    inputs = batch(3, 20)
    with torch.inference_mode():
        logits = {name: one(**inputs).logits.float() for name, one in models.items()}
    for name, found in logits.items():
        tolerance = {BFLOAT16: 0.2, INT8: 0.2}.get(name, 1e-4)
        torch.testing.assert_close(found, logits[BLAS], atol=tolerance, rtol=0)
    assert benchmark.sparsity_of(model) == pytest.approx(0.95, abs=0.01)


@pytest.mark.usefixtures("all_gain")
def test_model_without_blocks_of_zeros_has_no_int8_engine():
    models = benchmark.engines(sparse_model("bert", 0.3), bfloat16=False)
    assert list(models) == [BLAS, ONEDNN, OURS]


def test_peak_is_what_a_dense_product_reaches():
    assert 1e9 < benchmark.peak_multiply_adds(0.05) < 1e14


def test_models_of_one_compression_are_points(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(
        Axes, "plot", lambda self, *points, **style: drawn.append(style.get("linestyle"))
    )
    for points in ([(20.0, 5.0), (20.1, 7.0)], [(1.0, 5.0), (20.0, 7.0)]):
        with pytest.raises(KeyError):  # of the legend: nothing was drawn
            figure.draw({"batch 1": {"kd_prune": points}}, tmp_path / "x.png", "Speed")
    assert drawn == ["none", None]


def test_figure_is_drawn(tmp_path):
    points = {"dense": [(1.0, 10.0), (2.0, 10.0)], "kd_prune": [(2.0, 15.0), (1.0, 10.0)]}
    more = points | {f"rival {number}": [(2.0, 3.0)] for number in range(12)}
    figure.draw({"batch 1": points, "batch 32": more}, tmp_path / "x.png", "Speed")
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
