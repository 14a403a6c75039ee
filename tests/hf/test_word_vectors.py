"""Word vectors: files in GloVe's format, a model's embeddings, nearest words."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from kd_prune.errors import ConfigError
from kd_prune.hf.tiny import make_model
from kd_prune.hf.word_vectors import WORD, WordVectors, whole_words

CPU = torch.device("cpu")
LINES = ["the 1 0 0", ". 0 0 1", "cat 0.9 0.1 0", "dog 0.8 0.3 0", ". . 0 0 2", "fish 0 1 0"]


def write(path, lines, opener=open):
    with opener(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("name", "opener", "header"),
    [("v.txt", open, []), ("v.txt.gz", gzip.open, []), ("v.vec", open, ["6 3"])],
)
def test_file_is_read_in_its_common_forms(name, opener, header, tmp_path):
    vectors = WordVectors.read(write(tmp_path / name, [*header, *LINES], opener))
    assert vectors.words == ("the", ".", "cat", "dog", ". .", "fish")
    expected = np.array([[1, 0, 0], [0, 0, 1], [0.9, 0.1, 0], [0.8, 0.3, 0], [0, 0, 2], [0, 1, 0]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors.matrix.numpy(), expected, rtol=1e-6)


def test_only_the_first_words_are_read(tmp_path):
    assert WordVectors.read(write(tmp_path / "v", LINES), most=3).words == ("the", ".", "cat")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["the 1 0", "cat 1"], "line 2 is no word with a vector"),
        (["the 1 0", "cat 1 x"], "line 2 is no word with a vector"),
        (["one two three"], "line 1 is no word with a vector"),
        ([""], "line 1 is no word with a vector"),
    ],
)
def test_other_file_raises(lines, says, tmp_path):
    path = write(tmp_path / "v.txt", lines)
    with pytest.raises(ConfigError, match=rf"^vectors=.*v.txt: {says}"):
        WordVectors.read(path)
    with pytest.raises(ConfigError, match="there is no such file"):
        WordVectors.read(str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["v.txt.gz", "v.txt"])
def test_a_file_that_is_no_text_raises(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ConfigError, match=r"^vectors=.*cannot be read as text"):
        WordVectors.read(str(tmp_path / name))


def test_nearest_words_equal_a_sort_by_cosine():
    rng = np.random.default_rng(0)
    words = tuple(f"w{i}" for i in range(300))
    raw = rng.normal(size=(300, 5)).astype(np.float32)
    vectors = WordVectors(words, torch.nn.functional.normalize(torch.from_numpy(raw)))
    found = vectors.nearest(torch.from_numpy(raw), words, 7, CPU)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    for i, others in enumerate(found):
        cosine = unit @ unit[i]
        cosine[i] = -np.inf
        assert others == [words[j] for j in np.argsort(-cosine, kind="stable")[:7]]


def test_word_is_not_its_own_neighbour_in_any_case():
    vectors = WordVectors(("Good", "good", "well"), torch.ones(3, 1))
    assert vectors.nearest(torch.ones(1, 1), ["Good"], 2, CPU) == [["well"]]


def test_more_candidates_than_words_are_all_the_others():
    vectors = WordVectors(("a", "b", "c"), torch.eye(3))
    assert set(vectors.nearest(torch.eye(3)[:1], ["a"], 15, CPU)[0]) == {"b", "c"}


def test_embeddings_of_whole_words_are_taken_from_the_model(tmp_path):
    folder = make_model(str(tmp_path), layers=1, hidden_size=16, heads=2)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    vectors = WordVectors.of_model(model, tokenizer)
    assert {"fox", "the", "third"} <= set(vectors.words)
    assert not {",", "[MASK]", "[PAD]"} & set(vectors.words)
    table = model.get_input_embeddings().weight.detach()
    expected = table[tokenizer.convert_tokens_to_ids("fox")]
    torch.testing.assert_close(
        vectors.matrix[vectors.words.index("fox")], expected / expected.norm()
    )


def test_whole_words_of_wordpiece_are_no_continuations():
    tokenizer = BertTokenizer(vocab={t: i for i, t in enumerate(["[PAD]", "[UNK]", "fox", "##es"])})
    assert [word for word in whole_words(tokenizer) if word] == ["fox"]


def test_whole_words_of_byte_pairs_begin_with_their_marker():
    vocabulary = {"a": 0, "b": 1, "Ġ": 2, "Ġa": 3, "Ġab": 4}
    merges = [("Ġ", "a"), ("Ġa", "b")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert whole_words(tokenizer) == [None, None, None, "a", "ab"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's 2nd U.S. trip", ["The", "cat", "s", "U", "S", "trip"]),
        ("café x_y co-op 3D", ["x", "y", "co", "op"]),
    ],
)
def test_words_are_ascii_letters_between_other_characters(text, words):
    assert WORD.findall(text) == words
