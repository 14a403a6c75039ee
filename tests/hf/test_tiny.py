"""The embedded task and model: made offline, once, the same everywhere."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from kd_prune.hf import tiny
from kd_prune.hf.tiny import ADJECTIVES, KINDS, ORDINALS, make_model, make_task, sentences


def solve(row: dict[str, str]) -> str:
    """The rule of the task, written down a second time."""
    listed = row["things"].removeprefix("the ").replace(" and ", " , ").split(" , ")
    noun = listed[ORDINALS.index(row["which"])].split()[-1]
    return next(kind for kind, nouns in KINDS.items() if noun in nouns.split())


def test_labels_follow_the_rule_and_are_spread():
    rows = sentences(2000, seed=4)
    assert [solve(row) for row in rows] == [row["label"] for row in rows]
    counts = Counter(row["label"] for row in rows)
    assert counts.keys() == KINDS.keys()
    assert min(counts.values()) > 0.7 * 2000 / len(KINDS)
    assert sentences(20, seed=4) == sentences(20, seed=4) != sentences(20, seed=5)


def test_nouns_and_adjectives_are_each_of_one_kind():
    words = [word for nouns in KINDS.values() for word in nouns.split()] + ADJECTIVES.split()
    assert len(words) == len(set(words)) == 8 * 12 + 10


def test_make_task_writes_once_and_splits_differ(tmp_path):
    folder = make_task(str(tmp_path), train=50, validation=20)
    written = {file.name: file.stat().st_mtime_ns for file in Path(folder).iterdir()}
    assert make_task(str(tmp_path), train=50, validation=20) == folder
    assert written == {file.name: file.stat().st_mtime_ns for file in Path(folder).iterdir()}
    read = {
        split: list(map(json.loads, (Path(folder) / f"{split}.jsonl").read_text().splitlines()))
        for split in ("train", "validation")
    }
    assert [len(read["train"]), len(read["validation"])] == [50, 20]
    texts = [{row["things"] + row["which"] for row in rows} for rows in read.values()]
    assert texts[0].isdisjoint(texts[1])
    other = make_task(str(tmp_path), train=50, validation=20, seed=1)
    assert other != folder
    assert (Path(other) / "train.jsonl").read_text() != (Path(folder) / "train.jsonl").read_text()


def test_make_model_is_reproducible_and_leaves_the_generator_alone(tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    folders = [make_model(str(tmp_path / name), layers=1, hidden_size=16, heads=2) for name in "ab"]
    assert torch.equal(torch.get_rng_state(), before)
    ours, theirs = (AutoModel.from_pretrained(folder).state_dict() for folder in folders)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert make_model(str(tmp_path / "a"), layers=2, hidden_size=16, heads=2) != folders[0]


def test_tiny_tokenizer_knows_every_word(tmp_path):
    folder = make_model(str(tmp_path), layers=1, hidden_size=16, heads=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in sentences(200, seed=0):
        ids = tokenizer(row["things"], row["which"])["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= 32  # the task's max_length


def test_cached_folder_written_twice_at_once_is_kept_once(tmp_path):
    def write(folder: Path) -> None:
        (folder / "mine").write_text("mine")
        winner = folder.with_name(folder.name.rpartition(".")[0])
        winner.mkdir()
        (winner / "theirs").write_text("theirs")

    folder = Path(tiny.cached_folder(str(tmp_path), "thing", {"seed": 1}, write))
    assert [file.name for file in folder.iterdir()] == ["theirs"]
    assert list((tmp_path / "tiny").iterdir()) == [folder]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (make_task, "train", 0),
        (make_task, "things", 0),
        (make_task, "things", 6),
        (make_task, "seed", -1),
        (make_model, "layers", 0),
        (make_model, "heads", -1),
    ],
)
def test_tiny_number_out_of_range_raises(tmp_path, make, name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: expected a whole number"):
        make(str(tmp_path), **{name: value})
    assert not list(tmp_path.iterdir())
