"""Fewer tokens: the same tokens and outputs for the texts that were named."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hf.families import config
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

from kd_prune.errors import ConfigError
from kd_prune.export.folders import check_reloaded
from kd_prune.export.vocabulary import replace_tokenizer, tokens_to_keep, trim_vocabulary

TEXTS = ["the old fox", "a fox and the hound", "foxes", "old hounds", "", "THE FOX"]
OTHERS = ["a mouse sees the foxhound", "zz"]
WORDS = ["the", "old", "fox", "hound", "hounds", "mouse", "and", "sees", "see", "mo"]
PIECES = ["##es", "##hound", "##use"]
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def word_piece():
    from transformers import BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [*WORDS, *PIECES, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


def byte_bpe():
    """RoBERTa's kind: merges of bytes, the mask as the last token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges, known = [], dict.fromkeys(alphabet)
    for word in ("Ġthe", "Ġold", "Ġfox", "Ġhound", "Ġmouse", "Ġfoxes", "Ġhounds", "fox", "the"):
        pieces = list(word)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                known["".join(pair)] = None
            pieces = ["".join(pair), *pieces[2:]]
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *known, "<mask>"])}
    return RobertaTokenizer(vocab=vocabulary, merges=merges)


def unigram():
    pieces = [("▁the", -2.0), ("▁old", -3.0), ("▁fox", -3.0), ("▁", -4.0), ("fox", -5.0)]
    pieces += [("hound", -5.0), ("es", -4.0), ("s", -4.5), ("▁mouse", -6.0), ("▁a", -3.0)]
    letters = [(c, -9.0) for c in LETTERS if c != "s"]
    made = Tokenizer(models.Unigram([*((s, 0.0) for s in SPECIAL), *pieces, *letters], unk_id=3))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


MAKE = {"bert": word_piece, "roberta": byte_bpe, "distilbert": unigram}


def make(family):
    tokenizer = MAKE[family]()
    changes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    return AutoModel.from_config(config(family, **changes)).eval(), tokenizer


def states(model, tokenizer, texts):
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        return model(**batch).last_hidden_state[batch["attention_mask"].bool()]


@pytest.mark.parametrize("family", MAKE)
def test_trimmed_model_gives_the_same_outputs_for_the_texts(family, tmp_path):
    model, tokenizer = make(family)
    expected, before = states(model, tokenizer, TEXTS), len(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    trimmed = trim_vocabulary(model, tokenizer, TEXTS)
    replace_tokenizer(tmp_path, trimmed)
    check_reloaded(tmp_path, trimmed, TEXTS)
    model.save_pretrained(tmp_path)
    again, reloaded = AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert torch.equal(states(again, reloaded, TEXTS), expected)
    assert len(reloaded) < before
    assert again.config.vocab_size == len(again.get_input_embeddings().weight)
    assert again.config.vocab_size >= len(reloaded)
    assert again.config.pad_token_id == reloaded.pad_token_id
    states(again, reloaded, OTHERS)  # other texts still have tokens, of a known id


@pytest.mark.parametrize("family", MAKE)
def test_special_tokens_keep_their_names(family, tmp_path):
    model, tokenizer = make(family)
    tokenizer.save_pretrained(tmp_path)
    replace_tokenizer(tmp_path, trim_vocabulary(model, tokenizer, TEXTS))
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert set(reloaded.all_special_tokens) == set(tokenizer.all_special_tokens)
    assert all(
        reloaded.convert_tokens_to_ids(t) < len(reloaded) for t in reloaded.all_special_tokens
    )


def test_pairs_have_the_same_outputs(tmp_path):
    model, tokenizer = make("bert")
    pairs = (["the old fox"], ["a fox and the hound"])

    def state(model, tokenizer):
        batch = tokenizer(*pairs, return_tensors="pt")
        with torch.inference_mode():
            return model(**batch).last_hidden_state

    expected = state(model, tokenizer)
    tokenizer.save_pretrained(tmp_path)
    replace_tokenizer(tmp_path, trim_vocabulary(model, tokenizer, TEXTS))
    assert torch.equal(state(model, AutoTokenizer.from_pretrained(tmp_path)), expected)


def test_word_that_was_unknown_stays_unknown(tmp_path):
    """Without its longest pieces WordPiece would split it another way, and find it known."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "abc", "ab", "a", "##cd", "x"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    assert tokenizer("abcd")["input_ids"] == [2, 1, 3]
    torch.manual_seed(0)
    model = AutoModel.from_config(config("bert", vocab_size=len(words)))
    texts = ["ab abcd", "abcd xcd", "abcd a", "[UNK] abcd ab"]
    trimmed = trim_vocabulary(model, tokenizer, texts)
    known = trimmed.get_vocab()
    assert {"abc", "ab"} <= known.keys()
    assert [trimmed.encode(text).tokens for text in texts] == [
        tokenizer.backend_tokenizer.encode(text).tokens for text in texts
    ]


def test_bytes_that_stand_for_unknown_characters_are_kept():
    tokens = ["<unk>", "a", "b", "ab", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": ["a b"]}
    assert len(tokens_to_keep({"model": model | {"byte_fallback": True}}, {3})) == 3 + 256
    assert tokens_to_keep({"model": model | {"byte_fallback": False}}, {3}) == {1, 2, 3}


def test_trimmed_embeddings_stay_scaled():
    tokenizer = word_piece()
    changes = {"scale_embedding": True, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = AutoModel.from_config(config("bart", **changes)).eval()
    kind, scale = type(model.get_input_embeddings()), model.shared.embed_scale
    expected = states(model, tokenizer, TEXTS)
    trimmed = trim_vocabulary(model, tokenizer, TEXTS)
    found = PreTrainedTokenizerFast(tokenizer_object=trimmed, pad_token=tokenizer.pad_token)
    assert torch.equal(states(model, found, TEXTS), expected)
    assert (type(model.shared), model.shared.embed_scale) == (kind, scale)
    assert scale != 1.0


def test_model_with_a_head_over_its_tokens_is_refused():
    tokenizer = word_piece()
    model = AutoModelForMaskedLM.from_config(config("bert", vocab_size=len(tokenizer)))
    with pytest.raises(ConfigError, match="trim_vocabulary: BertForMaskedLM has a head over its"):
        trim_vocabulary(model, tokenizer, TEXTS)


def test_every_reference_to_an_id_is_renumbered(tmp_path):
    """No id above the new vocabulary's size is left anywhere in the file."""
    model, tokenizer = make("roberta")
    content = json.loads(trim_vocabulary(model, tokenizer, TEXTS).to_str())
    size = model.config.vocab_size
    ids = [*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"])]
    assert sorted(set(ids)) == list(range(size))
    inner = content["post_processor"]
    numbers = [value for name, (_, value) in ((n, inner[n]) for n in ("sep", "cls"))]
    assert numbers == [2, 0]
    merged = itertools.chain.from_iterable(content["model"]["merges"])
    assert set(merged) <= content["model"]["vocab"].keys()
