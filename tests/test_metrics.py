"""Every metric against scikit-learn and scipy, in batches of uneven size."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn

from kd_prune.errors import ConfigError
from kd_prune.metrics import Perplexity, metric_collection

ROWS = 41
CLASSES = {
    "accuracy": sklearn.accuracy_score,
    "f1": lambda labels, predictions: sklearn.f1_score(labels, predictions, zero_division=0),
    "macro_f1": lambda labels, predictions: sklearn.f1_score(
        labels, predictions, average="macro", zero_division=0
    ),
    "matthews": sklearn.matthews_corrcoef,
}
VALUES = {
    "pearson": lambda labels, predictions: stats.pearsonr(labels, predictions).statistic,
    "spearman": lambda labels, predictions: stats.spearmanr(labels, predictions).statistic,
}


def computed(names, num_labels, labels, predictions, cuts=(1, 2, 19, 33)):
    """Metrics over all rows, given in batches that end at `cuts`; ready to be used again."""
    collection = metric_collection(names, num_labels)
    for _ in range(2):
        collection.reset()
        pairs = zip(
            torch.as_tensor(predictions).tensor_split(cuts),
            torch.as_tensor(labels).tensor_split(cuts),
            strict=True,
        )
        for batch in pairs:
            collection.update(*batch)
        values = {name: value.item() for name, value in collection.compute().items()}
    return values


def drawn_classes(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(count, size=ROWS)
    return labels, np.where(rng.random(ROWS) < 0.5, labels, rng.integers(count, size=ROWS))


def drawn_values(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.integers(26, size=ROWS) / 5).astype(np.float32)  # as STS-B: many ties
    return labels, (labels + rng.normal(size=ROWS)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("accuracy", 2),
        ("accuracy", 3),
        ("accuracy", 5),
        ("f1", 2),
        ("macro_f1", 2),
        ("macro_f1", 3),
        ("macro_f1", 5),
        ("matthews", 2),
        ("matthews", 3),
        ("matthews", 5),
    ],
)
def test_classes(name, count, seed):
    labels, predictions = drawn_classes(count, seed)
    expected = CLASSES[name](labels, predictions)
    actual = computed([name], count, labels, predictions)
    assert actual == {name: pytest.approx(expected, abs=1e-6)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", VALUES)
def test_values(name, seed):
    labels, predictions = drawn_values(seed)
    expected = VALUES[name](labels, predictions)
    assert computed([name], 1, labels, predictions) == {name: pytest.approx(expected, abs=1e-6)}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("constant", [0, 1])
@pytest.mark.parametrize("which", ["predictions", "labels", "both", "both, other"])
def test_constant_classes(count, constant, which):
    """A student that was pruned too fast gives one class to everything."""
    labels, predictions = drawn_classes(count, 0)
    if which != "labels":
        predictions = np.full(ROWS, constant)
    if which != "predictions":
        labels = np.full(ROWS, constant if which != "both, other" else 1 - constant)
    names = list(CLASSES) if count == 2 else ["accuracy", "macro_f1", "matthews"]
    actual = computed(names, count, labels, predictions)
    for name in names:
        if name == "matthews":
            assert actual[name] == 0.0
        else:
            expected = CLASSES[name](labels, predictions)
            assert actual[name] == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize("constant", [0.0, 2.7, -1e4])
@pytest.mark.parametrize("which", ["predictions", "labels", "both"])
def test_constant_values_correlate_with_nothing(constant, which):
    labels, predictions = drawn_values(0)
    flat = np.full(ROWS, constant, dtype=np.float32)
    labels = labels if which == "predictions" else flat
    predictions = predictions if which == "labels" else flat
    actual = computed(["pearson", "spearman"], 1, labels, predictions)
    assert actual == {"pearson": 0.0, "spearman": 0.0}


def test_nearly_constant_values_still_correlate():
    labels, _ = drawn_values(0)
    predictions = (1000 + labels / 100).astype(np.float32)  # float32 leaves two digits or so
    actual = computed(["pearson"], 1, labels, predictions)["pearson"]
    expected = np.corrcoef(labels.astype(float), predictions.astype(float))[0, 1]
    assert actual == pytest.approx(expected, abs=1e-6)


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, ROWS - 1), unique=True).map(sorted))
def test_batches_do_not_matter(cuts):
    labels, predictions = drawn_classes(2, 0)
    assert computed(list(CLASSES), 2, labels, predictions, cuts) == computed(
        list(CLASSES), 2, labels, predictions, ()
    )
    labels, predictions = drawn_values(0)
    assert computed(list(VALUES), 1, labels, predictions, cuts) == computed(
        list(VALUES), 1, labels, predictions, ()
    )


def test_perfect_and_reversed_predictions():
    labels, _ = drawn_values(0)
    assert computed(list(VALUES), 1, labels, labels) == pytest.approx(dict.fromkeys(VALUES, 1.0))
    assert computed(list(VALUES), 1, labels, -labels) == pytest.approx(dict.fromkeys(VALUES, -1.0))
    labels, _ = drawn_classes(2, 0)
    assert computed(list(CLASSES), 2, labels, labels) == dict.fromkeys(CLASSES, 1.0)
    assert computed(["matthews"], 2, labels, 1 - labels) == {"matthews": -1.0}


def test_names_keep_their_order():
    names = ["matthews", "accuracy", "f1"]
    assert sorted(computed(names, 2, *drawn_classes(2, 0))) == sorted(names)


@pytest.mark.parametrize(
    ("name", "num_labels", "message"),
    [
        ("mcc", 2, r"^metrics=mcc: unknown metric; known: accuracy, f1, macro_f1, matthews, pea"),
        ("Accuracy", 2, "unknown"),
        ("pearson", 2, "pearson: does not suit 2 classes; take some of accuracy, f1, macro"),
        ("spearman", 3, "spearman: does not suit 3 classes; take some of accuracy, macro_f1"),
        ("accuracy", 1, "accuracy: does not suit a regression; take some of pearson, spearman"),
        ("matthews", 1, "matthews: does not suit a regression; take some of pearson"),
        ("f1", 3, "f1: does not suit 3 classes; take some of accuracy, macro_f1, matthews$"),
    ],
)
def test_metric_that_does_not_suit_is_refused(name, num_labels, message):
    with pytest.raises(ConfigError, match=message):
        metric_collection([name], num_labels)


def test_perplexity_of_an_improbable_token_is_finite():
    """A float32 softmax of these logits is 0, and its logarithm infinite."""
    perplexity = Perplexity()
    perplexity.update(torch.tensor([[120.0, 0.0]] * 2), torch.tensor([1, 0]))
    assert torch.softmax(torch.tensor([120.0, 0.0]), -1)[1] == 0
    assert perplexity.compute().item() == pytest.approx(math.exp(60.0), rel=1e-5)
