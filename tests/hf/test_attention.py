import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    LlamaConfig,
)

from kd_prune.errors import ConfigError
from kd_prune.hf import enable_attention_scores, forward
from kd_prune.hf.attention import SCORES, attention_returning_scores

from .families import FAMILIES, HEADS, LAYERS, batch, model

EVERYTHING = frozenset({"logits", "hidden_states", "attention_scores"})
SCORES_TOO = frozenset({"logits", "attention_scores"})


def tapped(family, **settings):
    made = model(family, **settings)
    enable_attention_scores(made)
    return made


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_enabled_leave_outputs_as_before(family, implementation):
    original = model(family, attn_implementation=implementation)
    assert original.config._attn_implementation == implementation
    expected = forward(original, batch(), frozenset({"hidden_states"}))
    actual = forward(tapped(family), batch(), EVERYTHING)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=0)
    real = batch()["attention_mask"].bool()
    for ours, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_logits_of_eager_attention(family):
    probabilities = forward(model(family, attn_implementation="eager"), batch(), SCORES_TOO)
    scores = forward(tapped(family), batch(), SCORES_TOO)
    assert len(scores.attention_scores) == LAYERS
    padded = ~batch()["attention_mask"].bool()[:, None, None, :]
    pairs = zip(scores.attention_scores, probabilities.attention_scores, strict=True)
    for ours, theirs in pairs:
        assert ours.shape == (3, HEADS, 6, 6)
        assert ours.std() > 0.1  # not scores of 0, whose softmax says nothing
        softmax = ours.masked_fill(padded, float("-inf")).softmax(-1)
        torch.testing.assert_close(softmax, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_unmasked(family):
    """They are products of queries and keys, finite for padded keys too."""
    scores = forward(tapped(family), batch(), SCORES_TOO).attention_scores
    assert max(layer.abs().max() for layer in scores) < 1e3


def test_scores_are_without_dropout_in_training():
    dropping = tapped("bert", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0).train()
    torch.manual_seed(0)
    first, second = (forward(dropping, batch(), SCORES_TOO) for _ in range(2))
    assert torch.equal(first.attention_scores[0], second.attention_scores[0])
    assert not torch.equal(first.attention_scores[1], second.attention_scores[1])
    dropping.eval()
    expected = forward(model("bert"), batch(), frozenset()).logits
    torch.testing.assert_close(forward(dropping, batch(), frozenset()).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_flow_through_scores(family):
    made = tapped(family)
    last = forward(made, batch(), SCORES_TOO).attention_scores[-1]
    last.square().mean().backward()
    last_query = (
        f"{LAYERS - 1}.attention.self.query.weight",
        f"{LAYERS - 1}.attention.q_lin.weight",
    )
    reached = [
        parameter.grad
        for name, parameter in made.named_parameters()
        if name.endswith((*last_query, "word_embeddings.weight"))
    ]
    assert len(reached) == 2
    assert all(gradient.norm() > 0 for gradient in reached)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_enabled_leave_gradients_as_before(family):
    original, ours = model(family, attn_implementation="eager"), tapped(family)
    for made in (original, ours):
        forward(made, batch(), EVERYTHING).logits.square().sum().backward()
    for (name, expected), (_, actual) in zip(
        original.named_parameters(), ours.named_parameters(), strict=True
    ):
        if expected.grad is None:  # the pooler of ELECTRA and such
            assert actual.grad is None, name
        else:
            torch.testing.assert_close(actual.grad, expected.grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["bert as a decoder", "llama", "llama, shared keys"])
def test_scores_enabled_leave_causal_models_causal(kind, padded):
    """SDPA may be told so instead of being given a mask, and whoever returns scores is not SDPA."""
    sizes = {"vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 12, "pad_token_id": 0, "initializer_range": 0.5}
    if kind.startswith("bert"):
        config = BertConfig(**sizes, is_decoder=True)
    else:
        config = LlamaConfig(**sizes, num_key_value_heads=2 if "shared" in kind else 4)
    torch.manual_seed(0)
    made = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.arange(5, 17).view(2, 6)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 4:] = 0
    rows = {"input_ids": ids, "attention_mask": mask}
    expected = forward(made, rows, frozenset())
    enable_attention_scores(made)
    actual = forward(made, rows, SCORES_TOO)
    assert actual.attention_scores[0].shape == (2, 4, 6, 6)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=0)


def test_enable_attention_scores_of_deberta_raises():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = DebertaV2Config(vocab_size=20, intermediate_size=12, **sizes)
    deberta = AutoModelForSequenceClassification.from_config(config)
    message = r"model_type=deberta-v2: .*weights of terms on attention to 0"
    with pytest.raises(ConfigError, match=message):
        enable_attention_scores(deberta)
    still = forward(deberta.eval(), batch() | {"input_ids": batch()["input_ids"] % 20}, EVERYTHING)
    assert len(still.hidden_states) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_gives_only_what_is_required(family):
    made = model(family)
    assert made.config._attn_implementation == "sdpa"
    logits = forward(made, batch(), frozenset({"logits"}))
    assert (logits.hidden_states, logits.attention_scores) == ((), ())
    hidden = forward(made, batch(), frozenset({"logits", "hidden_states"}))
    assert len(hidden.hidden_states) == LAYERS + 1
    assert hidden.attention_scores == ()
    trap = forward(made, batch(), EVERYTHING)
    assert trap.attention_scores == ()  # what SDPA gives, and Objective refuses

    enable_attention_scores(made)
    assert made.config._attn_implementation == SCORES
    logits = forward(made, batch(), frozenset({"logits"}))
    assert (logits.hidden_states, logits.attention_scores) == ((), ())


@pytest.mark.parametrize("family", FAMILIES)
def test_model_with_scores_is_saved_and_loaded_like_any(family, tmp_path):
    made = tapped(family)
    made.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    actual = forward(loaded.eval(), batch(), frozenset()).logits
    torch.testing.assert_close(actual, forward(made, batch(), frozenset()).logits)


def test_attention_that_is_another_function_is_refused():
    """Gemma 2 caps its scores, which the replacement would leave out."""
    heads = [torch.zeros(1, 1, 2, 4)] * 3
    with pytest.raises(ConfigError, match=r"^model_type: gives no attention scores: .* softcap"):
        attention_returning_scores(torch.nn.Module(), *heads, None, softcap=50.0)
    attention_returning_scores(torch.nn.Module(), *heads, None, softcap=None, sliding_window=4)
