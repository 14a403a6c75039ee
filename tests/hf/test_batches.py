"""Batches: their order, their padding, a loader that resumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.hf import batches, load_data, loaders
from kd_prune.hf.batches import LengthGroupedBatches, ResumableLoader, validation_batches

from .helpers import rows, task

SKEWED = np.clip(np.random.default_rng(1).lognormal(3.0, 0.8, size=2010), 4, 128).astype(int)


def batches_of(epoch=0, seed=0, done=0, batch_size=16, lengths=SKEWED):
    sampler = LengthGroupedBatches(lengths, batch_size=batch_size, seed=seed)
    sampler.set_epoch(epoch)
    sampler.batches_consumed = done
    return list(sampler)


def test_batches_hold_every_row_once_per_epoch():
    for epoch in range(2):
        batches = batches_of(epoch)
        assert len(batches) == len(LengthGroupedBatches(SKEWED, batch_size=16)) == 126
        assert sorted(row for batch in batches for row in batch) == list(range(2010))
        assert sorted(map(len, batches))[:2] == [10, 16]


def test_batch_order_depends_on_seed_and_epoch_alone():
    np.random.seed(5)
    torch.manual_seed(5)
    first = batches_of(3, seed=1)
    np.random.seed(6)
    torch.manual_seed(6)
    assert batches_of(3, seed=1) == first
    assert batches_of(4, seed=1) != first
    assert batches_of(3, seed=2) != first


def test_batches_have_little_padding_and_random_order():
    batches = batches_of()
    slots = sum(len(batch) * SKEWED[batch].max() for batch in batches)
    assert slots / SKEWED.sum() < 1.15
    plain = np.arange(2000).reshape(-1, 16)
    assert sum(16 * SKEWED[batch].max() for batch in plain) / SKEWED.sum() > 1.8  # is it skewed?
    means = np.array([SKEWED[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3  # neighbours are not alike


@pytest.mark.parametrize("world", [2, 3, 4])
def test_batches_are_shared_between_processes(monkeypatch, world):
    whole = {tuple(batch) for batch in batches_of()}
    shares = []
    for rank in range(world):
        monkeypatch.setattr(batches, "rank_and_world_size", lambda rank=rank: (rank, world))
        shares.append([tuple(batch) for batch in batches_of()])
        assert len(shares[-1]) == len(LengthGroupedBatches(SKEWED, batch_size=16))
    assert len({len(share) for share in shares}) == 1
    assert set().union(*shares) == whole
    twice = sum(map(len, shares)) - len(whole)
    assert 0 <= twice < world


def loader_of(done_epoch=None):
    rows = [{"ids": i} for i in range(40)]
    sampler = LengthGroupedBatches(np.arange(40), batch_size=8, seed=2)
    return ResumableLoader(rows, batch_sampler=sampler, collate_fn=lambda rows: rows)


def test_loader_resumes_in_the_middle_of_an_epoch():
    whole = loader_of()
    whole.batch_sampler.set_epoch(1)
    expected = list(whole)
    first = loader_of()
    first.batch_sampler.set_epoch(1)
    batches = iter(first)
    used = [next(batches), next(batches)]
    second = loader_of()
    second.load_state_dict(first.state_dict())
    second.batch_sampler.set_epoch(1)  # what a trainer does before it goes on
    assert used + list(second) == expected
    second.batch_sampler.set_epoch(2)
    assert len(list(second)) == 5


def test_loader_does_not_resume_a_finished_epoch():
    first = loader_of()
    batches = iter(first)
    for _ in range(3):  # a trainer with limit_train_batches=3 asks for no more
        next(batches)
    second = loader_of()
    second.load_state_dict(first.state_dict())
    second.batch_sampler.set_epoch(1)
    assert len(list(second)) == 5
    assert len(list(second)) == 5


def test_validation_batches_hold_every_row_with_its_label(folder, tokenizer, tmp_path):
    """Grouped by length, whatever the order in the file; each row once with its own label."""
    found = load_data(task(folder), tokenizer, tmp_path / "cache")
    chosen = task(folder, validation=["train"], eval_batch_size=4)
    seen = set()
    shapes = []
    for batch in loaders(chosen, found, tokenizer, seed=0)[1]["train"]:
        shapes.append(batch["input_ids"].shape[1])
        for ids, mask, label in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            seen.add((tokenizer.decode(ids[mask.bool()], skip_special_tokens=True), int(label)))
    assert seen == {(row["text"], row["label"]) for row in rows([0, 1, 1, 0, 1, 0])}
    longest = sorted(map(len, found.splits["train"]["input_ids"]))
    assert sorted(shapes) == [longest[3], longest[5]]


@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 9))
def test_validation_batch_order_depends_on_their_number_alone(number, batch_size, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 128, size=number)
    batches = validation_batches(lengths, batch_size)
    places = validation_batches(np.arange(number), batch_size)
    by_length = np.argsort(lengths, kind="stable")
    assert batches == [by_length[rows].tolist() for rows in places]
    assert sorted(row for batch in batches for row in batch) == list(range(number))


@pytest.mark.parametrize("batch_size", [4, 16, 32])
def test_first_validation_batches_are_not_the_shortest_rows(batch_size):
    batches = validation_batches(SKEWED, batch_size)
    share = SKEWED[np.concatenate(batches[: len(batches) // 10])]
    assert abs(share.mean() / SKEWED.mean() - 1) < 0.35  # sorted: 0.19 of the mean
    assert share.min() < np.quantile(SKEWED, 0.25) < np.quantile(SKEWED, 0.75) < share.max()


def test_pad_to_gives_one_shape(folder, tokenizer, tmp_path):
    chosen = task(folder, pad_to=20, batch_size=4)
    found = load_data(chosen, tokenizer, tmp_path / "cache")
    train, validation = loaders(chosen, found, tokenizer, seed=0)
    for loader in (train, *validation.values()):
        assert {batch["input_ids"].shape[1] for batch in loader} == {20}
    longest = load_data(task(folder), tokenizer, tmp_path / "cache")
    shapes = {
        b["input_ids"].shape[1]
        for b in loaders(task(folder, batch_size=1), longest, tokenizer, seed=0)[0]
    }
    assert len(shapes) > 1


def test_loaders_leave_the_global_generator_alone(folder, tokenizer, tmp_path):
    """Or dropout would depend on how often an epoch began."""
    found = load_data(task(folder), tokenizer, tmp_path / "cache")
    train, validation = loaders(task(folder), found, tokenizer, seed=0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for loader in (train, validation["validation"]):
        assert len(list(loader)) == 1
    assert torch.equal(torch.get_rng_state(), before)
