"""Batches of tokens: rows of similar length together, in an order that can be resumed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from kd_prune.hf.data import TaskData
from kd_prune.hf.tasks import Task


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of rows of similar length, in an order that depends on seed and epoch alone.

    Rows are shuffled, cut into pools of `pool` batches, sorted by length within a pool and cut into
    batches, which are shuffled. Every row occurs once per epoch; the last batch may be short. With
    n processes each takes every n-th batch; some batches occur twice, so that all processes take
    the same number.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows per batch.
        seed: Seed of the order.
        pool: Batches per pool; more means less padding and less random batches.
    """

    def __init__(
        self, lengths: np.ndarray, *, batch_size: int, seed: int = 0, pool: int = 50
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.pool = pool
        self.epoch = 0
        self.batches_consumed = 0

    @property
    def sampler(self) -> LengthGroupedBatches:
        """This object, because Lightning calls `set_epoch` of a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a new epoch starts at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.batches_consumed = epoch, 0

    def __len__(self) -> int:
        """Return the number of batches per epoch and process."""
        return math.ceil(math.ceil(len(self.lengths) / self.batch_size) / rank_and_world_size()[1])

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the epoch's batches from the first that was not consumed."""
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = generator.permutation(len(self.lengths))
        size = self.pool * self.batch_size
        batches = []
        for start in range(0, len(rows), size):
            pool = rows[start : start + size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        order = generator.permutation(len(batches))
        rank, world_size = rank_and_world_size()
        own = np.resize(order, len(self) * world_size)[rank::world_size]
        for i in own[self.batches_consumed :]:
            yield batches[i].tolist()


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of training processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class ResumableLoader(DataLoader[dict[str, Tensor]]):
    """A loader over `LengthGroupedBatches` that can resume in the middle of an epoch.

    The state is the epoch and the number of its batches that were consumed. It is exact because
    Lightning does not fetch batches in advance from a loader of known length. A collator that makes
    random batches has a method `reseed`, called with the seed and the epoch at every epoch's start.
    """

    batch_sampler: LengthGroupedBatches
    _consumed = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        """Yield the remaining batches of the epoch."""
        self._consumed = self.batch_sampler.batches_consumed
        if reseed := getattr(self.collate_fn, "reseed", None):
            reseed(self.batch_sampler.seed, self.batch_sampler.epoch)
        for batch in super().__iter__():
            self._consumed += 1
            yield batch
        self._consumed = self.batch_sampler.batches_consumed = 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and the number of its batches that were consumed."""
        return {"epoch": self.batch_sampler.epoch, "batches_consumed": self._consumed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Skip the batches consumed before, if that epoch continues."""
        self.batch_sampler.epoch = state["epoch"]
        self.batch_sampler.batches_consumed = self._consumed = state["batches_consumed"]


def loaders(
    task: Task, data: TaskData, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> tuple[ResumableLoader, dict[str, DataLoader[dict[str, Tensor]]]]:
    """Make the training loader and one validation loader per split.

    Each loader has its own random generator. Without one, every start of an epoch would draw from
    the global generator, and a resumed run starts one epoch more than an uninterrupted run.
    """
    train = data.splits[task.train]
    batches = LengthGroupedBatches(row_lengths(train), batch_size=task.batch_size, seed=seed)
    validation: dict[str, DataLoader[dict[str, Tensor]]] = {}
    for split in task.validation:
        rows = data.splits[split]
        validation[split] = DataLoader(
            rows,
            batch_sampler=validation_batches(row_lengths(rows), task.eval_batch_size),
            collate_fn=task.kind.collator(tokenizer, task.pad_to),
            generator=torch.Generator(),
        )
    loader = ResumableLoader(
        train,
        batch_sampler=batches,
        collate_fn=task.kind.collator(tokenizer, task.pad_to),
        generator=torch.Generator(),
    )
    return loader, validation


def validation_batches(lengths: np.ndarray, batch_size: int) -> list[list[int]]:
    """Sort rows by length, cut them into batches, and shuffle these with a fixed seed.

    The first few batches, which ``trainer.limit_val_batches`` takes, are then not the shortest.
    """
    rows = np.argsort(lengths, kind="stable").tolist()
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in np.random.default_rng(0).permutation(len(batches))]


def row_lengths(tokens: Dataset) -> np.ndarray:
    """Return the number of tokens of every row."""
    return np.asarray(pc.list_value_length(tokens.with_format("arrow")[:]["input_ids"]))
