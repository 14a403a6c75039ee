"""Masked words: which tokens are chosen and what becomes of them, the head, loss and metrics."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from kd_prune.distillation.activations import Activations
from kd_prune.errors import ConfigError
from kd_prune.hf import MaskedWords, PretrainedEncoder, Task, as_text, forward, load_data, loaders
from kd_prune.hf.forward_pass import LOGIT_POSITIONS
from kd_prune.hf.masking import IGNORED, STARTS, choose_tokens
from kd_prune.hf.tiny import make_model

from .families import FAMILIES, VOCABULARY, batch, config, tokenizer

METRICS = {"metrics": ["accuracy", "perplexity"], "monitor": "accuracy"}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##a", "##b", "##c"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_model(str(tmp_path_factory.mktemp("tiny")), layers=1, hidden_size=16, heads=2)


def collated(rows, *, kind=None, seed=(), reads=None, pad_to=None):
    """A batch of rows of token ids."""
    collate = (kind or MaskedWords()).collator(reads or tokenizer(), pad_to)
    collate.reseed(*seed)
    return collate([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows])


def row(length, *, seed):
    ids = np.random.default_rng(seed).integers(5, len(VOCABULARY), size=length)
    return [2, *ids.tolist(), 3]


# Which tokens


@pytest.mark.parametrize(("length", "expected"), [(1, 1), (3, 1), (10, 2), (20, 3), (100, 15)])
def test_share_of_the_tokens_is_chosen_and_at_least_one(length, expected):
    found = collated([row(length, seed=i) for i in range(5)])
    assert (found["labels"] != IGNORED).sum(1).tolist() == [expected] * 5


def test_labels_are_the_hidden_tokens_and_the_rest_is_unchanged():
    rows = [row(length, seed=length) for length in (30, 7, 12)]
    found = collated(rows, pad_to=40)
    for ids, labels, tokens, mask in zip(
        rows, found["labels"], found["input_ids"], found["attention_mask"], strict=True
    ):
        assert mask.sum() == len(ids)
        assert labels.shape == (40,)
        chosen = labels != IGNORED
        assert chosen[len(ids) :].sum() == chosen[0] == chosen[len(ids) - 1] == 0
        whole = torch.where(chosen, labels, tokens)[: len(ids)]
        assert whole.tolist() == ids
    assert torch.equal(found[LOGIT_POSITIONS], found["labels"] != IGNORED)


def test_special_and_unknown_tokens_are_never_chosen():
    rows = [[2, 1, 7, 3, 1, 8, 3] for _ in range(3)]
    kind = MaskedWords(share=0.99)
    for seed in range(10):
        labels = collated(rows, kind=kind, seed=(seed,))["labels"]
        assert set(labels.unique().tolist()) == {IGNORED, 7, 8}


def test_chosen_tokens_become_the_mask_or_a_random_token_or_stay():
    """20,000 draws: shares of 0.8, 0.1 and 0.1, and every token equally often."""
    rows = [row(200, seed=i) for i in range(100)]
    fates, random, places = Counter(), Counter(), Counter()
    for epoch in range(7):
        found = collated(rows, seed=(0, epoch))
        for ids, labels, tokens in zip(rows, found["labels"], found["input_ids"], strict=True):
            for i in torch.nonzero(labels != IGNORED).flatten().tolist():
                token = int(tokens[i])
                fate = "mask" if token == 4 else "kept" if token == ids[i] else "random"
                fates[fate] += 1
                places[i // 50] += 1
                random[token] += fate == "random"
    total = sum(fates.values())
    assert total == 7 * 100 * 30
    assert fates["mask"] / total == pytest.approx(0.8 + 0.1 / 31, abs=0.01)
    assert fates["random"] / total == pytest.approx(0.1 * 29 / 31, abs=0.01)
    assert set(random) >= set(range(len(VOCABULARY))) - {4}
    assert max(places.values()) < 1.1 * min(count for i, count in places.items() if i < 4)


def test_masks_depend_on_row_seed_and_epoch_alone():
    one, other, third = row(20, seed=1), row(20, seed=2), row(9, seed=3)
    alone = collated([one], seed=(0, 0))
    among = collated([third, other, one], seed=(0, 0))
    assert torch.equal(alone["input_ids"][0], among["input_ids"][2])
    assert torch.equal(alone["labels"][0], among["labels"][2])
    assert not torch.equal(among["labels"][1], among["labels"][2])
    for seed in ((0, 1), (1, 0)):
        assert not torch.equal(collated([one], seed=seed)["labels"], alone["labels"])


def test_loader_masks_every_epoch_anew_and_validation_never(tiny, tmp_path):
    (tmp_path / "text.txt").write_text("the small fox\nold hammer and pear\ngreen canoe\n" * 20)
    task = words_task(tmp_path, holdout=20, batch_size=4)
    reads = AutoTokenizer.from_pretrained(tiny)
    data = load_data(task, reads, tmp_path / "cache")
    train, validation = loaders(task, data, reads, seed=3)

    def rows(loader):
        return sorted(
            (ids + labels).tolist() for b in loader for ids, labels in pairs(b)
        )  # the order of batches differs between epochs

    def pairs(b):
        return zip(b["input_ids"], b["labels"], strict=True)

    epochs = []
    for epoch in (0, 1, 0):
        train.batch_sampler.set_epoch(epoch)
        epochs.append(rows(train))
    assert epochs[0] == epochs[2] != epochs[1]
    held_out = [rows(validation["validation"]) for _ in range(2)]
    assert held_out[0] == held_out[1]


def test_interrupted_epoch_continues_with_the_same_masks(tiny, tmp_path):
    (tmp_path / "text.txt").write_text("the small fox\nold hammer and pear\ngreen canoe\n" * 20)
    task = words_task(tmp_path, holdout=20, batch_size=4)
    reads = AutoTokenizer.from_pretrained(tiny)
    data = load_data(task, reads, tmp_path / "cache")
    whole, _ = loaders(task, data, reads, seed=3)
    resumed, _ = loaders(task, data, reads, seed=3)
    resumed.load_state_dict({"epoch": 1, "batches_consumed": 2})
    whole.batch_sampler.set_epoch(1)
    expected = list(whole)[2:]
    assert len(expected) == 2
    for one, other in zip(expected, resumed, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


# Whole words


def pieces():
    return tokenizer(PIECES)


def words_task(path, **settings):
    defaults = {"name": "words", "path": str(path), "text": ["text"], "kind": MaskedWords()}
    return Task(**(defaults | METRICS | {"max_length": 12, "holdout": 2} | settings))


@pytest.mark.parametrize("pack", [True, False])
def test_word_starts_are_those_of_the_tokens(tmp_path, pack):
    texts = ["abc b ac", "dabc e", "f g h aa bcc"]
    (tmp_path / "text.txt").write_text("\n".join(texts * 4))
    task = words_task(tmp_path, kind=MaskedWords(whole_words=True, pack=pack))
    rows = load_data(task, pieces(), tmp_path / "cache").splits["train"]
    assert len(rows) > 3
    for found in rows:
        names = pieces().convert_ids_to_tokens(found["input_ids"])
        starts = [int(not name.startswith("##")) for name in names]
        # A packed row may begin with the further pieces of a word.
        assert found[STARTS] == starts
    plain = load_data(words_task(tmp_path, kind=MaskedWords(pack=pack)), pieces(), tmp_path / "c")
    assert plain.splits["train"]["input_ids"][:] == rows["input_ids"][:]


def test_all_pieces_of_a_word_are_chosen_together():
    starts = np.array([1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1])
    words = {1: {1, 2, 3}, 5: {5, 6}} | {i: {i} for i in (0, 4, 7, 8, 9, 10)}
    seen = Counter()
    for seed in range(300):
        chosen = set(
            choose_tokens(np.ones(11, bool), starts, 0.3, np.random.default_rng(seed)).tolist()
        )
        parts = [word for word in words.values() if word <= chosen]
        assert set().union(*parts) == chosen
        assert len(chosen) <= 3
        seen.update(min(part) for part in parts)
    assert set(seen) == set(words)


def test_whole_words_end_at_special_tokens(tmp_path):
    """A further piece after a separator, cut off by packing, begins a word of its own."""
    starts, allowed = np.array([1, 1, 1, 0, 1]), np.array([False, True, False, True, False])
    found = {
        tuple(choose_tokens(allowed, starts, 0.1, np.random.default_rng(seed)))
        for seed in range(20)
    }
    assert found == {(1,), (3,)}


# Model, loss and metrics


@pytest.mark.parametrize("family", [*FAMILIES, "modernbert"])
@pytest.mark.parametrize("every_token", [False, True])
def test_logits_of_the_chosen_tokens_are_those_of_the_whole_model(family, every_token):
    made = AutoModelForMaskedLM.from_config(config(family)).eval()
    rows = [row(length, seed=length) for length in (6, 3, 20)]
    found = collated(rows, kind=MaskedWords(every_token=every_token))
    outputs = forward(made, found, frozenset({"logits", "hidden_states"}))
    inputs = {name: found[name] for name in ("input_ids", "attention_mask")}
    whole = made(**inputs, output_hidden_states=True)
    positions = found["attention_mask"].bool() if every_token else found["labels"] != IGNORED
    torch.testing.assert_close(outputs.logits, whole.logits[positions])
    assert len(outputs.hidden_states) == len(whole.hidden_states)
    for ours, theirs in zip(outputs.hidden_states, whole.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs)
    again = made(**inputs).logits  # nothing is left behind
    assert torch.equal(again, whole.logits)


@pytest.mark.parametrize("every_token", [False, True])
def test_loss_and_metrics_are_their_formulas(every_token):
    kind = MaskedWords(every_token=every_token)
    rows = [row(length, seed=length) for length in (6, 3, 20)]
    found = collated(rows, kind=kind)
    positions = found[LOGIT_POSITIONS]
    logits = 3 * torch.randn(int(positions.sum()), len(VOCABULARY))
    outputs = Activations(logits=logits)
    losses, right = [], []
    for scores, label in zip(logits.numpy(), found["labels"][positions].tolist(), strict=True):
        if label != IGNORED:
            p = np.exp(scores) / np.exp(scores).sum()
            losses.append(-math.log(p[label]))
            right.append(scores.argmax() == label)
    assert len(losses) == (found["labels"] != IGNORED).sum()
    loss = kind.hard_label_loss(outputs, found).item()
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    metrics = kind.metric_collection(["accuracy", "perplexity"], 0)
    predictions, targets = kind.predict(outputs, found)
    for part in (slice(0, 2), slice(2, None)):
        metrics.update(predictions[part], targets[part])
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert values["accuracy"] == pytest.approx(np.mean(right), rel=1e-6)


def test_batch_without_words_has_a_loss_of_zero():
    found = collated([[2, 3], [2, 1, 3]])
    made = AutoModelForMaskedLM.from_config(config("bert"))
    outputs = forward(made, found, frozenset({"logits"}))
    loss = MaskedWords().hard_label_loss(outputs, found)
    assert loss.item() == 0.0
    loss.backward()


def test_model_of_another_task_gets_a_head_that_is_tied(tiny):
    made = PretrainedEncoder(path=tiny).load(kind=MaskedWords(), num_outputs=0)
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight


def test_rows_of_masked_words_serve_as_plain_text(tmp_path):
    text = as_text(words_task(tmp_path, kind=MaskedWords(share=0.3)))
    assert (text.kind.pack, text.metrics, text.monitor) == (True, [], "loss")
    assert text.path == str(tmp_path)


def test_batch_of_another_kind_has_logits_of_every_row():
    made = AutoModelForMaskedLM.from_config(config("bert")).eval()
    assert forward(made, batch(), frozenset({"logits"})).logits.shape == (3, 6, len(VOCABULARY))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"share": 0.0}, r"share=0.0: expected a fraction in \(0, 1\)"),
        ({"mask_share": 1.5}, r"mask_share=1.5: expected a fraction in \[0, 1\]"),
        ({"random_share": -0.1}, r"random_share=-0.1: expected a fraction"),
        ({"random_share": 0.3}, "random_share=0.3: with mask_share=0.8 above 1"),
    ],
)
def test_shares_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        MaskedWords(**settings)


def test_tokenizer_without_a_mask_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("a\nb\nc\nd")
    reads = pieces()
    reads.mask_token = None
    with pytest.raises(ConfigError, match=r"^kind: the model's tokenizer has no mask token"):
        load_data(words_task(tmp_path), reads, tmp_path / "cache")


def test_unsuitable_metric_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"f1: does not suit .*masked_words; .*=.accuracy,perplex"
    ):
        words_task(tmp_path, metrics=["f1"])
