"""ELMo: directions see nothing of one another, padding changes nothing, files load again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kd_prune.distillation.activations import Activations
from kd_prune.errors import ConfigError
from kd_prune.export.folders import Export, export
from kd_prune.export.source import Source
from kd_prune.export.vocabulary import trim_vocabulary
from kd_prune.hf import (
    Classification,
    ElmoConfig,
    LanguageModel,
    PretrainedEncoder,
    encoder_scope,
    forward,
    freeze,
    max_positions,
    save,
)
from kd_prune.hf.elmo import (
    ElmoForPreTraining,
    ElmoForSequenceClassification,
    ElmoModel,
    make_model,
    maximum,
    reversal_of,
    reversed_tokens,
)
from kd_prune.hf.tiny import make_model as make_tiny

CONFIG = ElmoConfig(vocab_size=11, hidden_size=8, num_hidden_layers=3, hidden_dropout_prob=0.0)
LOGITS = frozenset({"logits"})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("elmo"))
    return make_model(cache, tokenizer=make_tiny(cache, layers=1), hidden_size=16, layers=2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ElmoModel(CONFIG).eval()


def test_each_direction_reads_only_its_side(model):
    ids = torch.randint(11, (1, 7))
    changed = ids.clone()
    changed[0, 3] = (ids[0, 3] + 1) % 11
    before, after = (model(one).last_hidden_state[0] for one in (ids, changed))
    left = [(before[i, :4] != after[i, :4]).any().item() for i in range(7)]
    right = [(before[i, 4:] != after[i, 4:]).any().item() for i in range(7)]
    assert left == [False] * 3 + [True] * 4
    assert right == [True] * 4 + [False] * 3


def test_states_equal_a_restatement_with_plain_lstms(model):
    ids = torch.randint(11, (2, 5))
    states = [model.embeddings(ids)] * 2
    expected = [torch.cat(states, -1)]
    for i, layer in enumerate(model.layers):
        left = layer.forward_lstm(states[0])[0]
        right = layer.backward_lstm(states[1].flip(1))[0].flip(1)
        states = [left, right] if i == 0 else [states[0] + left, states[1] + right]
        expected.append(torch.cat(states, -1))
    found = model(ids, output_hidden_states=True).hidden_states
    assert len(found) == 4
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", [ElmoForPreTraining, ElmoForSequenceClassification])
def test_padding_changes_no_logits(kind):
    torch.manual_seed(0)
    model = kind(CONFIG).eval()
    ids, mask = torch.randint(1, 11, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    padded = {
        "input_ids": F.pad(ids, (0, 3), value=7),
        "attention_mask": F.pad(mask, (0, 3)),
    }
    short, long = (forward(model, one, LOGITS).logits for one in (batch, padded))
    alone = forward(model, {"input_ids": ids[1:, :4]}, LOGITS).logits[0]
    if kind is ElmoForPreTraining:
        short, long = short[1, :4], long[1, :4]
    else:
        short, long = short[1], long[1]
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(short, alone)


def test_reversal_keeps_padding_at_the_end():
    states = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    found = reversed_tokens(states, reversal_of(mask))[..., 0]
    assert found.tolist() == [[3, 2, 1, 0], [5, 4, 6, 7]]


def test_logits_predict_the_tokens_beside(path):
    kind, tokenizer = LanguageModel(), AutoTokenizer.from_pretrained(path)
    rows = tokenizer(["the old fox", "oak"])
    batch = kind.collator(tokenizer, None)(
        [{name: column[i] for name, column in rows.items()} for i in (0, 1)]
    )
    ids = batch["input_ids"]
    model = PretrainedEncoder(path=path).load(kind=kind, num_outputs=0, head=True)
    outputs = forward(model, batch, LOGITS)
    log_q = outputs.logits.log_softmax(-1)
    expected = []
    for i, length in enumerate((5, 3)):
        expected += [-log_q[i, t, 0, ids[i, t + 1]] for t in range(length - 1)]
        expected += [-log_q[i, t, 1, ids[i, t - 1]] for t in range(1, length)]
    loss = kind.hard_label_loss(outputs, batch)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    metrics = kind.metric_collection(["accuracy", "perplexity"], 0)
    metrics.update(*kind.predict(outputs, batch))
    assert metrics.compute()["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)


def test_classifier_compares_the_mixed_layers_of_two_texts():
    torch.manual_seed(0)
    model = ElmoForSequenceClassification(CONFIG).eval()
    torch.nn.init.normal_(model.mixture.weights)
    model.mixture.scale.data.fill_(1.7)
    ids, model.config.sep_token_id = torch.tensor([[1, 7, 5, 3, 9, 5]]), 5
    layers = model.elmo(ids, output_hidden_states=True).hidden_states
    shares = model.mixture.weights.softmax(0)
    mixed = 1.7 * sum(share * layer for share, layer in zip(shares, layers, strict=True))
    left = model.reader.forward_lstm(mixed)[0]
    right = model.reader.backward_lstm(mixed.flip(1))[0].flip(1)
    read = torch.cat([left, right], -1)[0]
    u, v = read[:3].amax(0), read[3:].amax(0)
    compared = torch.cat([u, v, (u - v).abs(), u * v])
    expected = model.classifier(model.dense(compared).tanh())
    torch.testing.assert_close(model(ids).logits[0], expected)
    model.config.sep_token_id = None
    u = v = read.amax(0)
    alone = model.classifier(model.dense(torch.cat([u, v, u - v, u * v])).tanh())
    torch.testing.assert_close(model(ids).logits[0], alone)


def test_maximum_ignores_other_tokens():
    states = torch.tensor([[[1.0], [5.0], [2.0]]])
    assert maximum(states, torch.tensor([[True, False, True]])).tolist() == [[2.0]]


def test_language_model_becomes_the_encoder_of_a_classifier(path, tmp_path):
    encoder = PretrainedEncoder(path=path)
    torch.manual_seed(1)
    model = encoder.load(kind=Classification(), num_outputs=3)
    before = encoder.load(kind=LanguageModel(), num_outputs=0)
    assert isinstance(model, ElmoForSequenceClassification)
    for name, weight in before.elmo.state_dict().items():
        assert torch.equal(model.elmo.state_dict()[name], weight), name
    assert model.mixture.weights.tolist() == [0.0] * 3
    assert model.mixture.scale.tolist() == [1.0]
    assert max_positions(model) == float("inf")
    save(
        model,
        encoder.tokenizer(),
        tmp_path / "saved",
        kind=Classification(),
        labels=("a", "b", "c"),
    )
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    batch = encoder.tokenizer()(["the old fox"], ["oak"], return_tensors="pt")
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    # Not bit by bit: an LSTM's kernel depends on where its weights lie in memory.
    torch.testing.assert_close(again(**batch).logits, model.eval()(**batch).logits)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}
    source = Source.find(str(tmp_path / "saved"))
    assert isinstance(source.load(), ElmoForSequenceClassification)
    export(source, Export(form="fp16"), tmp_path / "out")
    assert "import kd_prune.hf  # has" in (tmp_path / "out" / "README.md").read_text()


def test_scope_is_the_lstms_of_the_layers_and_freezing_leaves_the_classifier(path):
    model = PretrainedEncoder(path=path).load(kind=Classification(), num_outputs=2)
    names = set(encoder_scope(model).select(model))
    assert names == {
        f"elmo.layers.{layer}.{way}_lstm.weight_{part}_l0"
        for layer in (0, 1)
        for way in ("forward", "backward")
        for part in ("ih", "hh")
    }
    freeze(model, ["embeddings", "layers"])
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"mixture", "reader", "dense", "classifier"}


def test_model_of_the_same_settings_is_made_once(path, tmp_path):
    tokenizer = make_tiny(str(tmp_path), layers=1)
    made = [
        make_model(str(tmp_path), tokenizer=tokenizer, hidden_size=8, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert made[0] == made[1] != made[2]
    for settings, says in (
        ({"hidden_size": 1}, "hidden_size=1: expected at least 2"),
        ({"layers": 0}, "layers=0: expected at least 1"),
        ({"tokenizer": "/nowhere"}, "tokenizer=/nowhere: there is no such folder"),
    ):
        with pytest.raises(ConfigError, match=f"^{says}"):
            make_model(str(tmp_path), **({"tokenizer": tokenizer} | settings))
    with pytest.raises(ConfigError, match=r"^hidden_size=7: expected an even number"):
        ElmoModel(ElmoConfig(vocab_size=5, hidden_size=7))


def test_outputs_without_a_prediction_are_left_out():
    kind = LanguageModel()
    labels = torch.tensor([[[1, -100], [-100, 0]]])
    logits = torch.tensor([[[[0.0, 9.0], [9.0, 9.0]], [[9.0, 9.0], [9.0, 0.0]]]])
    predictions, targets = kind.predict(Activations(logits=logits), {"labels": labels})
    assert predictions.tolist() == [[0.0, 9.0], [9.0, 0.0]]
    assert targets.tolist() == [1, 0]


def test_a_smaller_vocabulary_leaves_the_logits(path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = ["the old fox", "a red apple"]
    torch.manual_seed(0)
    classifier = ElmoForSequenceClassification(ElmoConfig.from_pretrained(path)).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    before = classifier(**batch).logits
    trimmed = trim_vocabulary(classifier, tokenizer, texts)
    ids = torch.tensor([one.ids for one in trimmed.encode_batch(texts)])
    assert classifier.config.vocab_size == len(classifier.get_input_embeddings().weight) < 40
    assert torch.equal(classifier(ids, torch.ones_like(ids)).logits, before)
    language_model = ElmoForPreTraining(ElmoConfig.from_pretrained(path))
    with pytest.raises(ConfigError, match="ElmoForPreTraining has a head over its vocabulary"):
        trim_vocabulary(language_model, tokenizer, texts)
