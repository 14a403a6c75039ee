"""Speed of a model on this machine: dense and accelerated, taking turns in one process."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kd_prune.inference.convert import accelerate, report

OURS, INT8 = "kd_prune", "kd_prune int8"
BLAS, ONEDNN, BFLOAT16 = "torch fp32 (BLAS)", "torch fp32 (oneDNN)", "torch bf16"
FULL_PRECISION = (BLAS, ONEDNN)
Model = TypeVar("Model", bound=nn.Module)
Batch = dict[str, Tensor]
Engine = Callable[..., Any]
"""Runs a `Batch`, given by keywords; the first part of the result is the model's first output."""
TURN = 8
"""Most batches that a model runs before it is the next one's turn."""
TOLERANCE = 1e-3
"""Largest difference of an engine in float32, relative to the largest output; see `suspicious`."""


@dataclass(frozen=True)
class Timing:
    """Times of an engine.

    Attributes:
        engine: Its name.
        batch_size: Sentences per call; the last call of a list may have fewer.
        sentences: Sentences in all calls of a round.
        rounds: Seconds that every round took.
        calls: Seconds of every call.
    """

    engine: str
    batch_size: int
    sentences: int
    rounds: tuple[float, ...]
    calls: tuple[float, ...]

    @property
    def sentences_per_second(self) -> float:
        """Return the throughput of the median round."""
        return self.sentences / statistics.median(self.rounds)

    @property
    def median(self) -> float:
        """Return the median seconds of a call."""
        return statistics.median(self.calls)

    @property
    def p95(self) -> float:
        """Return the seconds that 95 % of the calls stay below."""
        return sorted(self.calls)[math.ceil(0.95 * len(self.calls)) - 1]


def engines(model: nn.Module, bfloat16: bool | None = None) -> dict[str, nn.Module]:
    """Return the ways to run a model, by name, all in eval mode; int8 where layers gain from it.

    Args:
        model: The model, dense or with zeros.
        bfloat16: Whether to include bfloat16; None: where the processor has instructions for it.
    """
    model = model.eval()
    shared = {id(tensor): tensor for tensor in model.parameters()}
    found = {BLAS: model, ONEDNN: with_onednn(copy.deepcopy(model, shared))}
    if torch.cpu._is_avx512_bf16_supported() if bfloat16 is None else bfloat16:
        found[BFLOAT16] = copy.deepcopy(model).to(torch.bfloat16)
    found[OURS] = accelerate(model)
    rounded = accelerate(model, int8=True)
    if report(rounded).int8:
        found[INT8] = rounded
    return found


class OneDNNLinear(nn.Module):
    """A linear layer with its weight in oneDNN's own order."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs of oneDNN's product."""
        product = torch.ops.mkldnn._linear_pointwise
        output: Tensor = product(input, self.weight, self.bias, "none", [], "")
        return output


def with_onednn(model: nn.Module) -> nn.Module:
    """Replace a model's linear layers, in place, by oneDNN's, as torch.compile does."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.Linear and torch._C._has_mkldnn:
                setattr(parent, name, OneDNNLinear(child))
    return model


def batches(lengths: Sequence[int], size: int, vocabulary: int) -> list[Batch]:
    """Draw batches of random tokens: sentences of similar length together, padded to the longest.

    Args:
        lengths: Tokens of every sentence.
        size: Sentences per batch.
        vocabulary: Number of tokens to draw from.
    """
    return padded(random_sentences(sorted(lengths), vocabulary), size)


def random_sentences(lengths: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Draw the tokens of sentences of these lengths."""
    generator = torch.Generator().manual_seed(0)
    first = min(5, vocabulary - 1)
    return [
        torch.randint(first, vocabulary, (length,), generator=generator).tolist()
        for length in lengths
    ]


def padded(sentences: Sequence[Sequence[int]], size: int) -> list[Batch]:
    """Return batches of sentences of similar length, padded to the longest.

    Args:
        sentences: Tokens of every sentence.
        size: Sentences per batch; the last may have fewer.
    """
    ordered = sorted(sentences, key=len)
    found = []
    for first in range(0, len(ordered), size):
        group = ordered[first : first + size]
        longest = len(group[-1])
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in group])
        mask = torch.arange(longest) < torch.tensor([len(row) for row in group])[:, None]
        found.append({"input_ids": ids, "attention_mask": mask.long()})
    return found


def measure(
    models: Mapping[str, Engine],
    work: Sequence[Batch],
    rounds: int,
    progress: Callable[[Iterator[int]], Any] = iter,
) -> list[Timing]:
    """Time models on the same batches, by turns; the first round is not counted.

    A turn is `TURN` batches at most. Before it, the threads of the model before come to rest.

    Args:
        models: The models, or other engines, by name.
        work: The batches of a round.
        rounds: Rounds that count.
        progress: Shows the rounds as they pass.
    """
    calls: dict[str, list[list[float]]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in progress(iter(range(-1, rounds))):
            seconds: dict[str, list[float]] = {name: [] for name in models}
            for first in range(0, len(work), TURN):
                for name, model in models.items():
                    settle()
                    for batch in work[first : first + TURN]:
                        start = time.perf_counter()
                        model(**batch)
                        seconds[name].append(time.perf_counter() - start)
            if number >= 0:
                for name, taken in seconds.items():
                    calls[name].append(taken)
    size = max(len(batch["input_ids"]) for batch in work)
    sentences = sum(len(batch["input_ids"]) for batch in work)
    return [
        Timing(
            name, size, sentences, tuple(map(sum, taken)), tuple(t for one in taken for t in one)
        )
        for name, taken in calls.items()
    ]


def settle(window: float = 0.004, limit: float = 0.1) -> None:
    """Wait until no thread of this process computes.

    Threads of OpenMP and of thread pools spin for some milliseconds after their work, and would
    take the processor from an engine with threads of its own.

    Args:
        window: Seconds in which the process may use a quarter of one core.
        limit: Seconds after which to give up.
    """
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(window)
        if time.process_time() - used < window / 4:
            return


def differences(models: Mapping[str, Engine], batch: Batch) -> dict[str, float]:
    """Return the largest difference of every engine's output to that of torch's default BLAS.

    It is relative to the largest output, and over real tokens; NaN where an output is not finite.
    """
    with torch.inference_mode():
        outputs = {name: model(**batch)[0].float() for name, model in models.items()}
    expected = outputs[BLAS]
    real = batch["attention_mask"].bool() if expected.ndim > 2 else ...
    scale = expected[real].abs().max().clamp_min(1e-12)
    return {
        name: float((found - expected)[real].abs().max() / scale) for name, found in outputs.items()
    }


def suspicious(engine: str, difference: float) -> bool:
    """Return whether an engine computes something else than the model.

    Float32 may differ by `TOLERANCE`. Other precisions differ as much as they round; they have to
    be finite, and closer to the model's outputs than zero is.
    """
    rounded = any(kind in engine for kind in ("bf16", "int8"))
    return not difference <= (1.0 if rounded else TOLERANCE)


def speed_up(timings: Sequence[Timing], engine: str = OURS) -> float:
    """Return an engine's speed over the better of torch's two ways to compute in float32.

    The median over the rounds of the ratio within a round, so that what slows the machine down for
    a while slows both.
    """
    by_name = {timing.engine: timing for timing in timings}
    dense = min((by_name[name] for name in FULL_PRECISION), key=lambda timing: sum(timing.rounds))
    pairs = zip(dense.rounds, by_name[engine].rounds, strict=True)
    return statistics.median(other / own for other, own in pairs)


def sparsity_of(model: nn.Module, names: Collection[str] = ()) -> float:
    """Return the share of zeros of the parameters of these names; of all linear layers if none."""
    weights: list[Tensor] = [one for name, one in model.named_parameters() if name in names]
    if not weights:
        weights = [part.weight for part in model.modules() if isinstance(part, nn.Linear)]
    size = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / size if size else 0.0


def with_sparsity(model: Model, names: Collection[str], sparsity: float, *, seed: int = 0) -> Model:
    """Return a copy whose parameters of these names are random, with this share of zeros in each.

    Speed depends on how many weights are zero, and not on the values of the others.

    Args:
        model: The model; the other parameters are shared with it.
        names: Names of the parameters.
        sparsity: Share of zeros, in [0, 1).
        seed: Seed of the weights.
    """
    chosen = {name: weight for name, weight in model.named_parameters() if name in names}
    ids = {id(weight) for weight in chosen.values()}
    shared = {id(weight): weight for weight in model.parameters() if id(weight) not in ids}
    made = copy.deepcopy(model, shared)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name in chosen:
                weight.normal_(std=0.02, generator=generator)
                drawn = torch.rand(weight.shape, generator=generator)
                weight.masked_fill_(drawn < sparsity, 0.0)
    return made


def peak_multiply_adds(seconds: float = 0.2) -> float:
    """Return the multiply-adds per second of torch's product of two square matrices, all threads.

    oneDNN comes within a few percent of what the processor can do, so this stands for its peak.
    """
    size = 1024
    layer = OneDNNLinear(nn.Linear(size, size, bias=True).requires_grad_(False))
    inputs = torch.randn(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        layer(inputs)
        best = min(best, time.perf_counter() - start)
    return size**3 / best
