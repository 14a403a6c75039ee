"""Reading: every format, every refusal."""

from __future__ import annotations

import datetime
import gzip
import json
import os
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from kd_prune.errors import ConfigError
from kd_prune.hf import Text, load_data, reading
from kd_prune.hf.reading import read_splits, read_table

from .helpers import REGRESSION, TEXTS, labels_of, rows, task, write


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl", "json"])
def test_read_takes_every_local_format(tmp_path, tokenizer, suffix):
    for split, labels in (("train", [0, 1, 1]), ("validation", [1, 0])):
        write(tmp_path, split, rows(labels), suffix)
    found = load_data(task(tmp_path), tokenizer, tmp_path / "cache")
    assert found.labels == ("0", "1")
    assert (labels_of(found), labels_of(found, "validation")) == ([0, 1, 1], [1, 0])
    assert found.splits["train"]["input_ids"][0] == tokenizer("the old fox")["input_ids"]


def test_read_takes_a_folder_whose_name_is_a_pattern(tmp_path, tokenizer):
    for split in ("train", "validation"):
        write(tmp_path / "set [1]*", split, rows([0, 1, 1]))
        write(tmp_path / "set 1", split, rows([1, 0, 0]))
    found = load_data(task(tmp_path / "set [1]*"), tokenizer, tmp_path / "cache")
    assert labels_of(found) == [0, 1, 1]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_read_truncated_file_raises_in_one_line(tmp_path, tokenizer, folder, suffix, capfd, caplog):
    (folder / "train.jsonl").unlink()
    write(folder, "train", rows([0, 1, 1]), suffix)
    file = folder / f"train.{suffix}"
    file.write_bytes(file.read_bytes()[:-20])
    says = rf"^path={folder}: {file} cannot be read \(.*\); write it again, or name another: .*$"
    with pytest.raises(ValueError, match=says):
        load_data(task(folder), tokenizer, tmp_path / "cache")
    assert not caplog.records
    assert "rror" not in "".join(capfd.readouterr())


def test_read_subset_takes_the_subfolder(folder, tokenizer, tmp_path):
    for split in ("train", "validation"):
        write(folder / "sub", split, rows([2, 1, 0]))
    found = load_data(task(folder, subset="sub"), tokenizer, tmp_path / "cache")
    assert labels_of(found) == [2, 1, 0]
    found = load_data(task(folder, subset="not_there"), tokenizer, tmp_path / "cache")
    assert labels_of(found) == [0, 1, 1, 0, 1, 0]
    with pytest.raises(ConfigError, match=r"^subset=subb: .*no such folder; did you mean sub\?$"):
        load_data(task(folder, subset="subb"), tokenizer, tmp_path / "cache")
    next((folder / "sub").glob("validation.*")).unlink()
    with pytest.raises(ConfigError, match=r"found no validation\.parquet.* in .*/sub"):
        load_data(task(folder, subset="sub"), tokenizer, tmp_path / "cache")


def test_read_takes_files_by_name(folder, tokenizer, tmp_path):
    (folder / "validation.jsonl").rename(folder / "dev.json")
    found = load_data(task(folder, files={"validation": "dev.json"}), tokenizer, tmp_path / "cache")
    assert labels_of(found, "validation") == [1, 0]


def test_read_csv_does_not_guess(tmp_path, tokenizer):
    """Readers that guess take "null" for nothing, 007 for 7, and an empty column for numbers."""
    lines = ["text,more,label", "null,,01", "NA,,02", "007,,None", "1.0,,01"]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    found = load_data(task(tmp_path, text=["text", "more"]), tokenizer, tmp_path / "cache")
    assert (found.labels, labels_of(found)) == (("01", "02", "None"), [0, 1, 2, 0])
    assert list(read_table(tmp_path / "train.csv", "csv", "label")["text"]) == [
        "null", "NA", "007", "1.0",
    ]  # fmt: skip


def test_read_csv_up_to_a_row_does_not_read_those_after_it(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\nc,too,many\n")
    (tmp_path / "validation.csv").write_text("text,label\na,0\n")
    found = read_splits(task(tmp_path, train_rows=2, text=["text"]), tmp_path / "cache")
    assert found["train"]["text"][:] == ["a", "b"]


def test_read_csv_row_longer_than_the_header_raises(tmp_path, tokenizer):
    """A comma that nobody quoted; what stood before it would be lost."""
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("text,label\nfox, red,a\noak, old,b\n")
    with pytest.raises(ValueError, match=r"csv cannot be read \(a row has more fields") as refusal:
        load_data(task(tmp_path), tokenizer, tmp_path / "cache")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("train", "settings", "says"),
    [
        ([0, 1], {"text": ["txt"]}, ["text=txt", "no such column", "text, label"]),
        ([0, 1], {"text": ["label"]}, ["text=label", "int64", "name another column"]),
        ([0, 1], {"label": "gold"}, ["label=gold", "no such column", "text, label"]),
        ([0, None, 1], {}, ["label=label", "row 1 of the train split", "no label", "remove"]),
        ([0, 1, float("nan")], {}, ["row 2 of the train split", "no label", "remove"]),
        ([0, 1, -1], {}, ["row 2", "is -1", "not one of the 2 classes", "task.labels"]),
        ([1, 2, 0], {"labels": ["1", "2"]}, ["row 2", "is 0", "['1', '2']", "task.labels"]),
        ([0, 1, 2], {"labels": ["a", "b"]}, ["row 2", "is 2", "['a', 'b']", "task.labels"]),
        (["No", "YES"], {"labels": ["No", "Yes", "yes"]}, ["row 1", "is 'YES'", "not one of"]),
        (["a", "c"], {"labels": ["a", "b"]}, ["row 1", "is 'c'", "['a', 'b']", "task.labels"]),
        ([0.5, 1.5], {}, ["label=label", "fractional", "task/kind=regression"]),
        ([0.0, 0.5], {"labels": ["a", "b"]}, ["row 1", "is 0.5", "not one of the 2 classes"]),
        ([1, 1], {}, ["label=label", "1 class"]),
        ([[0], [1]], {}, ["label=label", "holds lists or mixed values there", "name another"]),
        (
            [datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)],
            {},
            ["label=label", "holds date32", "not numbers or text"],
        ),
        ([0, 0], {}, ["label=label", "1 class", "task/kind=regression"]),
        ([-1, -1], {}, ["label=label", "0 class"]),
        (["x", "x"], {}, ["label=label", "1 class"]),
        (["x", ""], {"labels": ["x", "y"]}, ["row 1", "no label", "remove"]),
        (list(range(300)), {}, ["label=label", "300 classes in 300 rows", "another"]),
        ([0.5, float("nan")], REGRESSION, ["row 1", "no label", "remove"]),
        ([0.5, None], REGRESSION, ["row 1", "no label", "remove"]),
        ([0.5, float("inf")], REGRESSION, ["row 1", "inf", "finite numbers", "remove"]),
        (["a", "b"], REGRESSION, ["row 0", "is 'a'", "finite numbers"]),
    ],
)
def test_unsuitable_data_raise_with_key_and_remedy(tmp_path, tokenizer, train, settings, says):
    write(tmp_path, "train", rows(train), "parquet")
    write(tmp_path, "validation", rows(train), "parquet")
    with pytest.raises(ConfigError) as refused:
        load_data(task(tmp_path, **settings), tokenizer, tmp_path / "cache")
    assert "\n" not in str(refused.value)
    assert all(part in str(refused.value) for part in says), refused.value


def test_read_missing_file_raises(folder, tokenizer, tmp_path):
    (folder / "validation.jsonl").unlink()
    with pytest.raises(ValueError, match=r"^path=.*no validation\.parquet.*task\.files"):
        load_data(task(folder), tokenizer, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"found no dev\.csv .*task\.files=\{validation: "):
        load_data(task(folder, files={"validation": "dev.csv"}), tokenizer, tmp_path / "cache")
    (folder / "validation.doc").write_text("fox")
    with pytest.raises(ValueError, match=r"no validation\.parquet.*validation\.doc .* convert it$"):
        load_data(task(folder), tokenizer, tmp_path / "cache")
    (folder / "dev.doc").write_text("fox")
    with pytest.raises(ValueError, match=r"^files\.validation=dev\.doc: expected .*parquet"):
        load_data(task(folder, files={"validation": "dev.doc"}), tokenizer, tmp_path / "cache")


def declare(monkeypatch, **rows):
    """Let the hub's data set declare these splits, and loading any other fail."""
    splits = {name: SimpleNamespace(num_examples=count) for name, count in rows.items()}
    builder = SimpleNamespace(info=SimpleNamespace(splits=splits))
    monkeypatch.setattr(reading, "load_dataset_builder", lambda *source: builder)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("dev", r"^train=dev: not a split of nyu-mll/glue \(there are train, validation, test\)"),
        ("test", "^path=nyu-mll/glue: the test split is empty"),
        ("validation", r"^path=nyu-mll/glue: not a local folder, and .*\(the hub's own words\)"),
    ],
)
def test_read_split_that_the_hub_does_not_give_raises(
    tokenizer, tmp_path, monkeypatch, split, says
):
    def refuse(**source):
        raise ValueError("the hub's own words")

    monkeypatch.setattr(reading, "load_dataset", refuse)
    declare(monkeypatch, train=3, validation=2, test=0)
    with pytest.raises(ConfigError, match=says):
        load_data(task("nyu-mll/glue", train=split), tokenizer, tmp_path)


def test_read_unreachable_path_raises(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"^path=.*nowhere: there is no such folder; pass the pa"):
        load_data(task(tmp_path / "nowhere"), tokenizer, tmp_path / "cache")


def test_read_broken_file_raises(folder, tokenizer, tmp_path):
    (folder / "train.jsonl").write_text('{"text": "fox", "la')
    with pytest.raises(ValueError, match=r"^path=.*cannot be read") as refused:
        load_data(task(folder), tokenizer, tmp_path / "cache")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_read_empty_split_raises(tmp_path, tokenizer, suffix):
    write(tmp_path, "train", rows([0, 1]), suffix)
    if suffix == "parquet":
        empty = pa.Table.from_pylist(rows([0])).slice(0, 0)
        pq.write_table(empty, tmp_path / "validation.parquet")
    else:
        header = "text,label\n" if suffix == "csv" else ""
        (tmp_path / f"validation.{suffix}").write_text(header)
    with pytest.raises(ValueError, match=r"^path=.*the validation split is empty"):
        load_data(task(tmp_path), tokenizer, tmp_path / "cache")


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_read_empty_file_raises_in_one_line(tmp_path, tokenizer, suffix, text):
    write(tmp_path, "train", rows([0, 1]), suffix)
    (tmp_path / f"validation.{suffix}").write_text(text)
    with pytest.raises(ValueError, match=r"^path=[^\n]*(empty|cannot be read)[^\n]*$"):
        load_data(task(tmp_path), tokenizer, tmp_path / "cache")


def test_read_file_replaced_at_the_same_time_is_read_again(folder, tokenizer, tmp_path):
    """As `cp -p`, `rsync -t` and archives leave it."""
    file = folder / "train.jsonl"
    before = load_data(task(folder), tokenizer, tmp_path / "cache")
    times = file.stat()
    write(folder, "train", rows([1, 0, 0, 1, 0, 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load_data(task(folder), tokenizer, tmp_path / "cache")
    assert labels_of(before) == [0, 1, 1, 0, 1, 0]
    assert labels_of(after) == [1, 0, 0, 1, 0, 1]
    assert after.fingerprint != before.fingerprint


# Text files, compressed files, rows held out


def text_task(path, **settings):
    settings = {"kind": Text(), "metrics": [], "monitor": "loss"} | settings
    return task(path, **settings)


def texts_of(found, split, column="text"):
    return list(found[split][column])


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "jsonl.gz"])
def test_read_takes_text_and_compressed_files(tmp_path, suffix):
    for split in ("train", "validation"):
        if suffix.startswith("txt"):
            content = "the old fox\n\n   \r\nnull\n# oak, pear\n"
        else:
            texts = ("the old fox", "null", "# oak, pear")
            content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        file = tmp_path / "data" / f"{split}.{suffix}"
        file.parent.mkdir(exist_ok=True)
        data = content.encode()
        file.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    found = read_splits(text_task(tmp_path / "data"), tmp_path / "cache")
    for split in ("train", "validation"):
        assert texts_of(found, split) == ["the old fox", "null", "# oak, pear"]


def test_read_blank_text_file_raises(tmp_path):
    for split, content in (("train", "fox\n"), ("validation", "\n  \n")):
        (tmp_path / f"{split}.txt").write_text(content)
    with pytest.raises(ConfigError, match=r"^path=.*: the validation split is empty"):
        read_splits(text_task(tmp_path), tmp_path / "cache")


def test_read_single_file_of_any_name_is_the_training_split(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wikipedia_sample.txt").write_text("\n".join(TEXTS))
    (tmp_path / "data" / "README.md").write_text("where it is from")
    found = read_splits(text_task(tmp_path / "data", holdout=2), tmp_path / "cache")
    assert texts_of(found, "train") == TEXTS[:4]
    assert texts_of(found, "validation") == TEXTS[4:]
    with pytest.raises(ConfigError, match=r"found no validation.*, or take .*task.holdout=<n>"):
        read_splits(text_task(tmp_path / "data"), tmp_path / "cache")
    (tmp_path / "data" / "more.txt").write_text("oak")
    with pytest.raises(ConfigError, match=r"found no train\.parquet"):
        read_splits(text_task(tmp_path / "data", holdout=2), tmp_path / "cache")


def test_read_single_validation_file_is_not_the_training_split(tmp_path):
    (tmp_path / "validation.txt").write_text("\n".join(TEXTS))
    with pytest.raises(ConfigError, match=r"found no train\.parquet"):
        read_splits(text_task(tmp_path, holdout=1), tmp_path / "cache")


def test_holdout_takes_the_last_rows_only_without_a_validation_split(folder, tokenizer, tmp_path):
    chosen = task(folder, holdout=2)
    assert labels_of(load_data(chosen, tokenizer, tmp_path / "cache"), "validation") == [1, 0]
    (folder / "validation.jsonl").unlink()
    found = load_data(chosen, tokenizer, tmp_path / "cache")
    assert labels_of(found) == [0, 1, 1, 0]
    assert labels_of(found, "validation") == [1, 0]
    with pytest.raises(ConfigError, match=r"^holdout=6: the training split has only 6 rows"):
        load_data(task(folder, holdout=6), tokenizer, tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"^holdout=2: there is no split a, .* a single one"):
        read_splits(task(folder, holdout=2, validation=["a", "b"]), tmp_path / "cache")


@pytest.mark.parametrize("declared", [True, False])
def test_holdout_is_taken_from_a_hub_data_set_without_validation(tmp_path, monkeypatch, declared):
    train = Dataset.from_list(rows([0, 1, 1]))

    def load_dataset(path, split, **source):
        if split != "train":
            raise ValueError(split)
        return train

    monkeypatch.setattr(reading, "load_dataset", load_dataset)
    declare(monkeypatch, **({"train": 3} if declared else {}))
    monkeypatch.setattr(reading, "get_dataset_split_names", lambda *source: ["train"])
    found = read_splits(task("owner/corpus", holdout=1), tmp_path)
    assert {split: len(dataset) for split, dataset in found.items()} == {
        "train": 2,
        "validation": 1,
    }


def test_read_takes_glues_own_files_with_quotes_in_texts(tmp_path, tokenizer):
    lines = ["sentence\tlabel", '"old" fox\t0', '"red oak\t1', "null\t1"]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.TSV").write_text("\n".join(lines) + "\n")
    found = load_data(task(tmp_path, text=["sentence"]), tokenizer, tmp_path / "cache")
    assert labels_of(found) == [0, 1, 1]
    texts = [line.partition("\t")[0] for line in lines[1:]]
    assert list(found.splits["train"]["input_ids"]) == tokenizer(texts)["input_ids"]


def test_texts_that_json_lines_take_for_dates_are_named(tmp_path, tokenizer):
    for split in ("train", "validation"):
        lines = [{"text": "2020-01-01T10:00:00", "label": i} for i in (0, 1)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ConfigError, match=r"text=text: .*timestamp.*in CSV it is not"):
        load_data(task(tmp_path), tokenizer, tmp_path / "cache")


@pytest.mark.parametrize("blank", ["train", "validation"])
def test_corpus_without_any_token_is_refused(tmp_path, tokenizer, blank):
    for split in ("train", "validation"):
        write(tmp_path, split, [{"text": "  " if split == blank else "the old fox"}] * 3)
    corpus = task(tmp_path, kind=Text(pack=True), max_length=8, metrics=[], monitor="loss")
    with pytest.raises(ConfigError, match=f"path=.*: the texts of the {blank} split have no"):
        load_data(corpus, tokenizer, tmp_path / "cache")


def test_read_two_files_of_one_split_are_refused(folder, tokenizer, tmp_path):
    """One would be edited, and the other read."""
    write(folder, "train", rows([0, 1]), "csv")
    says = r"^path=\S+: has train\.csv and train\.jsonl; name one .*task\.files=\{train: train"
    with pytest.raises(ConfigError, match=says):
        load_data(task(folder), tokenizer, tmp_path / "cache")
    found = load_data(task(folder, files={"train": "train.csv"}), tokenizer, tmp_path / "cache")
    assert len(found.splits["train"]) == 2


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_read_split_of_any_name(tmp_path, tokenizer, suffix):
    for split in ("train", "dev-2020"):
        write(tmp_path, split, rows([0, 1]), suffix)
    found = load_data(task(tmp_path, validation=["dev-2020"]), tokenizer, tmp_path / "cache")
    assert labels_of(found, "dev-2020") == [0, 1]


def test_text_column_of_the_targets_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^text=labels: the name that targets have"):
        task(tmp_path, text=["labels"])
