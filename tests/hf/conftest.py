"""A tokenizer and a data set that the tests of data share."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from kd_prune.hf.tiny import make_model

from .helpers import rows, write


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = make_model(str(tmp_path_factory.mktemp("tiny")), layers=1, hidden_size=16, heads=2)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "data", "train", rows([0, 1, 1, 0, 1, 0]))
    write(tmp_path / "data", "validation", rows([1, 0]))
    return tmp_path / "data"
