"""Augmentation: candidates against a plain restatement, copies by their properties, the cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertTokenizer

from kd_prune.errors import ConfigError
from kd_prune.hf import Augmentation, PretrainedEncoder
from kd_prune.hf import augmentation as module
from kd_prune.hf.augmentation import augmented_rows, copies_of_text, load_replacements
from kd_prune.hf.replacements import STOP_WORDS
from kd_prune.hf.tiny import make_model

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] the old fox sees a red ham ##mer ##s and , hen pig ##let"
TEXTS = ["The old fox sees a hammer", "hammers and the red fox, 2nd", "", "the and"]
MORE = ["a red hen", "old pig", "the piglet", "fox"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small masked language model with words of several pieces."""
    folder = tmp_path_factory.mktemp("masked")
    vocabulary = {piece: i for i, piece in enumerate(PIECES.split())}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    return PretrainedEncoder(path=str(folder))


@pytest.fixture
def pairs():
    return Dataset.from_dict({"one": TEXTS, "other": MORE})


def rows_of(settings, texts, encoder, cache):
    found = augmented_rows(settings, texts, task="mrpc", encoder=encoder, cache=cache)
    return [tuple(row.values()) for row in found]


def test_words_of_one_token_have_the_likeliest_words_at_their_masked_place(encoder):
    replacements, _ = load_replacements(Augmentation(candidates=6), encoder)
    model = AutoModelForMaskedLM.from_pretrained(encoder.path).eval()
    pieces = PIECES.split()
    seen = 0
    for text, words in zip(TEXTS, replacements.find(TEXTS), strict=True):
        tokens = replacements.tokenizer.tokenize(text)
        for word in words:
            given = text[word.start : word.end].lower()
            assert given not in STOP_WORDS
            if given not in pieces:
                continue
            seen += 1
            masked = ["[MASK]" if token == given else token for token in tokens]
            row = ["[CLS]", *masked, "[SEP]", *tokens, "[SEP]"]
            segments = [0] * (len(tokens) + 2) + [1] * (len(tokens) + 1)
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([replacements.tokenizer.convert_tokens_to_ids(row)]),
                    token_type_ids=torch.tensor([segments]),
                ).logits[0, row.index("[MASK]")]
            likeliest = [pieces[i] for i in logits.argsort(descending=True)[:6]]
            expected = [p for p in likeliest if not p.startswith(("##", "["))]
            assert word.candidates == expected
    assert seen == 5


def test_words_of_several_tokens_have_the_nearest_words(encoder):
    replacements, _ = load_replacements(Augmentation(candidates=3), encoder)
    (words,) = replacements.find(["old hammer"])
    table = replacements.embeddings.numpy()
    pieces = PIECES.split()
    whole = [w for w in pieces if w.isalpha()]
    mean = table[[pieces.index("ham"), pieces.index("##mer")]].mean(0)
    rows = table[[pieces.index(word) for word in whole]]
    cosine = rows @ mean / np.linalg.norm(rows, axis=1)
    assert words[1].candidates == [whole[i] for i in np.argsort(-cosine)[:3]]


def test_vectors_of_a_file_know_no_other_words_and_keep_capitals(encoder, tmp_path):
    (tmp_path / "v.txt").write_text("hammer 1 0\nmallet 0.9 0.1\nfork 0 1\n")
    settings = Augmentation(candidates=2, vectors=str(tmp_path / "v.txt"))
    replacements, _ = load_replacements(settings, encoder)
    found = replacements.nearest(["hammer", "Hammer", "piglet"])
    assert found == {"hammer": ["mallet", "fork"], "Hammer": ["Mallet", "Fork"]}


def test_copies_change_one_side_and_differ(encoder, pairs, tmp_path):
    settings = Augmentation(copies=8)
    found = rows_of(settings, pairs, encoder, tmp_path)
    originals = list(zip(TEXTS, MORE, strict=True))
    assert len(set(found)) == len(found) > 20
    assert not set(found) & set(originals)
    for one, other in found:
        assert one in TEXTS or other in MORE
    for text in (TEXTS[2], TEXTS[3]):  # nothing to replace
        assert {one for one, other in found if other == MORE[TEXTS.index(text)]} <= {text}
    assert len([row for row in found if row[1] == MORE[0]]) <= 8


def test_copies_keep_all_but_the_replaced_words(encoder, tmp_path):
    texts = Dataset.from_dict({"text": [TEXTS[1]]})
    copies = rows_of(Augmentation(copies=20), texts, encoder, tmp_path)
    assert len(copies) > 5
    for (copy,) in copies:
        words = copy.replace(",", " ,").split()
        assert len(words) == 7
        assert [words[i] for i in (1, 2, 5, 6)] == ["and", "the", ",", "2nd"]
        assert copy.endswith(", 2nd")


def test_words_are_replaced_with_the_probability():
    rng = np.random.default_rng(0)
    text = " ".join(["old"] * 50)
    words = [{"start": 4 * i, "end": 4 * i + 3, "candidates": ["a", "b"]} for i in range(50)]
    copies = copies_of_text(text, words, 200, 0.4, rng)
    replaced = np.array([[word != "old" for word in copy.split()] for copy in copies])
    assert len(copies) == 200
    assert replaced.mean() == pytest.approx(0.4, abs=0.02)
    chosen = [word for copy in copies for word in copy.split() if word != "old"]
    assert chosen.count("a") / len(chosen) == pytest.approx(0.5, abs=0.03)


def test_seed_decides_the_copies(encoder, pairs, tmp_path):
    first, second, other = (
        rows_of(Augmentation(copies=4, seed=seed), pairs, encoder, tmp_path / str(i))
        for i, seed in enumerate((1, 1, 2))
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize("texts", [["你好 世界", "лиса"], ["it is to it is", "12 3"], ["", ""]])
def test_texts_without_a_word_to_replace_are_refused_every_time(encoder, tmp_path, texts):
    for _ in range(2):  # nothing is kept of the first
        with pytest.raises(ConfigError, match=r"^copies=4: no word of the training texts can be"):
            rows_of(Augmentation(copies=4), Dataset.from_dict({"one": texts}), encoder, tmp_path)


def test_renamed_column_keeps_its_name_in_the_copies(encoder, tmp_path):
    for name in ("review", "text"):
        texts = Dataset.from_dict({name: TEXTS})
        made = augmented_rows(Augmentation(), texts, task="sst2", encoder=encoder, cache=tmp_path)
        assert made.column_names == [name]


def test_copies_and_candidates_are_kept(encoder, pairs, tmp_path, monkeypatch):
    made = rows_of(Augmentation(copies=4), pairs, encoder, tmp_path)
    calls = []
    monkeypatch.setattr(module.Replacements, "find", lambda self, texts: calls.append(texts))
    monkeypatch.setattr(module, "copies_of_text", lambda *given: calls.append(given) or ["copy"])
    assert rows_of(Augmentation(copies=4), pairs, encoder, tmp_path) == made
    assert not calls
    assert len(rows_of(Augmentation(copies=5), pairs, encoder, tmp_path)) == 8
    assert len(calls) == 8  # copies are drawn anew, from the same candidates
    changed = replace(encoder, path=make_model(str(tmp_path), layers=1, hidden_size=16, heads=2))
    with pytest.raises(TypeError):  # another model: candidates are looked for
        rows_of(Augmentation(copies=4), pairs, changed, tmp_path)


def test_numbers_of_copies_are_tinyberts():
    names = ("mrpc", "cola", "rte", "stsb", "sst2", "qnli", "mnli", "qqp", "tickets")
    copies = [Augmentation().copies_of(name) for name in names]
    assert copies == [30, 30, 30, 30, 20, 20, 10, 10, 20]
    assert Augmentation(copies=7).copies_of("mrpc") == 7


def test_encoder_without_head_replaces_all_words_by_vectors(tmp_path, caplog):
    plain = PretrainedEncoder(path=make_model(str(tmp_path), layers=1, hidden_size=16, heads=2))
    replacements, _ = load_replacements(Augmentation(), plain)
    assert "has no head for masked words, so word vectors replace all words" in caplog.text
    (words,) = replacements.find(["the old fox"])
    assert [len(word.candidates) for word in words] == [15, 15]
    with pytest.raises(ConfigError, match=r"^model=.*has no head for a task of kind masked_words"):
        load_replacements(Augmentation(model=plain.path), plain)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"probability": 0.0}, "probability=0.0: expected a fraction in"),
        ({"copies": 0}, "copies=0: expected at least 1"),
        ({"candidates": 0}, "candidates=0: expected at least 1"),
        ({"seed": -1}, "seed=-1: expected at least 0"),
    ],
)
def test_numbers_out_of_range_raise(settings, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        Augmentation(**settings)
