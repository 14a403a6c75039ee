"""``kd-prune predict``: the answers of the model, for files and standard input, in their order."""

from __future__ import annotations

import io
import json
import shutil
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from export.models import save_student, sparse_model, tokenizer
from export.runs import make_run
from torch import nn
from transformers import AutoTokenizer

from kd_prune import inference
from kd_prune.cli import predict
from kd_prune.cli.main import main
from kd_prune.errors import ConfigError
from kd_prune.hf.layers import max_positions
from kd_prune.hf.prediction import Prediction

TEXTS = ["abc", "a longer text here", "", "zz z", "NA", "1.50"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model without a run."""
    return save_student(tmp_path_factory.mktemp("model"))


@pytest.fixture
def no_engine(monkeypatch):
    monkeypatch.setattr(inference, "accelerate", lambda model, int8: model)


def probabilities(texts):
    """One row at a time, without padding: what batches must not change."""
    rows = []
    for text in texts:
        batch = tokenizer()(text, return_tensors="pt", truncation=True, max_length=16)
        with torch.no_grad():
            rows.append(sparse_model()(**batch).logits.softmax(-1)[0])
    return torch.stack(rows)


def predicted(*arguments, capsys) -> pd.DataFrame:
    main(["predict", *map(str, arguments)])
    return pd.read_csv(io.StringIO(capsys.readouterr().out), keep_default_na=False, dtype=str)


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_predictions_are_those_of_the_model_row_by_row(suffix, folder, tmp_path, capsys):
    file = tmp_path / f"rows.{suffix}"
    rows = pd.DataFrame({"text": TEXTS, "id": ["01", "02", "03", "04", "05", "06"]})
    match suffix:
        case "jsonl":
            rows.to_json(file, orient="records", lines=True)
        case "parquet":
            rows.to_parquet(file)
        case _:
            rows.to_csv(file, index=False, sep="\t" if suffix == "tsv" else ",")
    found = predicted(folder, "--file", file, "--probabilities", "--batch-size", 4, capsys=capsys)
    expected = probabilities(TEXTS)
    assert found["text"].tolist() == TEXTS
    assert found["id"].tolist() == rows["id"].tolist()
    assert found["prediction"].tolist() == [f"LABEL_{int(i)}" for i in expected.argmax(-1)]
    for i in range(2):
        values = torch.tensor(found[f"p(LABEL_{i})"].astype(float).tolist())
        assert torch.allclose(values, expected[:, i], atol=2e-6)


@pytest.mark.usefixtures("no_engine")
def test_columns_are_the_tasks_of_the_run(run, tmp_path, capsys):
    rows = pd.DataFrame({"note": ["x"], "sentence2": ["b"], "sentence1": ["a"]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    found = predicted(run, "--file", tmp_path / "rows.csv", capsys=capsys)
    batch = tokenizer()("a", "b", return_tensors="pt")
    with torch.no_grad():
        expected = sparse_model()(**batch).logits.softmax(-1)[0]
    assert float(found["score"][0]) == pytest.approx(float(expected.max()), abs=2e-6)


@pytest.mark.usefixtures("no_engine")
def test_standard_input_is_one_text_per_line(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n\nzz z\n"))
    found = predicted(folder, capsys=capsys)
    assert found["text"].tolist() == ["abc", "zz z"]


@pytest.mark.usefixtures("no_engine")
def test_text_is_read_as_long_as_the_command_or_the_task_says(folder, run, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("sentence1,sentence2,text\na,b,c\n")
    lengths = []
    monkeypatch.setattr(
        "kd_prune.hf.prediction.predict",
        lambda *args, max_length, **kwargs: lengths.append(max_length) or [Prediction("a", 1.0)],
    )
    file = ("--file", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "out.csv"))
    most = int(max_positions(sparse_model()))
    for arguments in (("--max-length", str(most)), ("--max-length", "3"), ()):
        main(["predict", str(run), *file, *arguments])
    main(["predict", str(folder), *file, "--text", "text"])
    tokenizer_length = min(most, tokenizer().model_max_length, 512)
    assert lengths == [most, 3, 16, tokenizer_length]
    with pytest.raises(SystemExit, match=rf"max_length={most + 1}: the model reads {most} tokens"):
        main(["predict", str(run), *file, "--max-length", str(most + 1)])


@pytest.mark.usefixtures("no_engine")
def test_output_file_is_written_and_named(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"text": "abc"}\n'))
    out = tmp_path / "new" / "out.csv"
    main(["predict", str(folder), "--stdin", "jsonl", "--out", str(out)])
    assert out.read_text().startswith("text,prediction,score\nabc,LABEL_")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"1 rows: {out}\n"


def test_a_folder_as_output_is_refused_before_any_work(tmp_path):
    with pytest.raises(SystemExit, match="is a folder; name a file"):
        main(["predict", "no model", "--file", "no rows.csv", "--out", str(tmp_path)])


@pytest.mark.usefixtures("no_engine")
def test_an_output_that_nobody_reads_any_more_is_no_error(folder, monkeypatch):
    """As of ``kd-prune predict … | head -1``."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n"))
    closed = io.StringIO()
    monkeypatch.setattr(closed, "write", Mock(side_effect=BrokenPipeError))
    monkeypatch.setattr(sys, "stdout", closed)
    with pytest.raises(BrokenPipeError):
        predict.main([str(folder)])


@pytest.mark.usefixtures("no_engine")
def test_segments_are_those_of_the_tokenizer(folder, tmp_path, capsys):
    """As in training, and in transformers: a tokenizer may leave them out."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = copy / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))
    (tmp_path / "rows.csv").write_text("a,b\nabc,zz z\n")
    found = predicted(copy, "--file", tmp_path / "rows.csv", "--text", "a,b", capsys=capsys)
    batch = AutoTokenizer.from_pretrained(copy)("abc", "zz z", return_tensors="pt")
    with torch.no_grad():
        expected = sparse_model()(**batch).logits.softmax(-1)[0]
        other = sparse_model()(**tokenizer()("abc", "zz z", return_tensors="pt")).logits.softmax(-1)
    assert float(found["score"][0]) == pytest.approx(float(expected.max()), abs=2e-6)
    assert float(found["score"][0]) != pytest.approx(float(other.max()), abs=2e-6)


def test_a_mistyped_folder_is_named_before_the_rows_are_read():
    with pytest.raises(SystemExit, match=r"^error: folder=no-such: "):
        main(["predict", "no-such", "--file", "rows.csv"])


class Negated(nn.Module):
    """A model whose logits are of the other sign."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        outputs = self.model(**batch)
        outputs.logits = -outputs.logits
        return outputs


def test_sparse_engine_is_used_unless_it_cannot_be(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inference, "accelerate", lambda model, int8: Negated(model))
    (tmp_path / "rows.txt").write_text("abc\n")
    arguments = (folder, "--file", tmp_path / "rows.txt")
    fast = predicted(*arguments, capsys=capsys)["prediction"][0]
    dense = predicted(*arguments, "--dense", capsys=capsys)["prediction"][0]
    assert {fast, dense} == {"LABEL_0", "LABEL_1"}
    for failure in (
        ImportError("libLLVM is broken"),
        ConfigError("llvmlite", expected="is not installed", hint="pip install 'kd_prune[cpu]'"),
    ):
        monkeypatch.setattr(inference, "accelerate", Mock(side_effect=failure))
        main(["predict", *map(str, arguments)])
        said = capsys.readouterr()
        assert said.err == f"Dense torch is used: {failure}\n"
        assert dense in said.out


def test_int8_is_asked_of_the_engine_and_one_line_says_if_nothing_is_rounded(
    folder, tmp_path, monkeypatch, capsys
):
    accelerate = Mock(side_effect=lambda model, int8: Negated(model))
    rounded = SimpleNamespace(int8=1)
    monkeypatch.setattr(inference, "accelerate", accelerate)
    monkeypatch.setattr(inference, "report", lambda model: rounded)
    (tmp_path / "rows.txt").write_text("abc\n")
    arguments = ["predict", str(folder), "--file", str(tmp_path / "rows.txt")]
    main(arguments)
    assert accelerate.call_args.kwargs == {"int8": False}
    main([*arguments, "--int8"])
    assert accelerate.call_args.kwargs == {"int8": True}
    assert capsys.readouterr().err == ""
    rounded.int8 = 0
    main([*arguments, "--int8"])
    assert capsys.readouterr().err == f"{predict.NOT_ROUNDED}\n"
    with pytest.raises(SystemExit, match=r"^error: int8: is of the sparse engine, and --dense"):
        main([*arguments, "--int8", "--dense"])


@pytest.mark.usefixtures("no_engine")
def test_regression_predicts_numbers(tmp_path, monkeypatch, capsys):
    from hf.families import model

    made = model(num_labels=1)
    made.save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n"))
    found = predicted(tmp_path / "m", capsys=capsys)
    assert list(found) == ["text", "prediction"]
    with torch.no_grad():
        expected = made(**tokenizer()("abc", return_tensors="pt")).logits
    assert float(found["prediction"][0]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.usefixtures("no_engine")
def test_columns_of_the_rows_are_kept(folder, tmp_path, capsys):
    rows = pd.DataFrame({"text": TEXTS[:2], "score": ["5", "1"]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    main(["predict", str(folder), "--file", str(tmp_path / "rows.csv")])
    out, err = capsys.readouterr()
    found = pd.read_csv(io.StringIO(out), dtype=str)
    assert list(found) == ["text", "score", "prediction", "predicted_score"]
    assert found["score"].tolist() == ["5", "1"]
    assert "The rows have a column score; the new one is predicted_score." in err
    (tmp_path / "again.csv").write_text(out)
    main(["predict", str(folder), "--file", str(tmp_path / "again.csv")])
    columns = capsys.readouterr().out.partition("\n")[0].split(",")
    assert columns == [*found, "predicted_prediction", "predicted_predicted_score"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--stdin", "csv"], "a,b\nx,y\n", "text: which columns hold the text? There are a, b"),
        (["--stdin", "csv", "--text", "c"], "a,b\nx,y\n", "text=c: not a column; there are a, b"),
        (["--stdin", "csv", "--text", "a,b,a"], "a,b\nx,y\n", "expected one column or two"),
        (["--stdin", "jsonl"], "{", "stdin=jsonl: cannot be read"),
        ([], "\n", "there are no rows"),
        (["--batch-size", "0"], "x\n", "batch_size=0: expected at least 1"),
        (["--file", "none.csv"], "", "file=none.csv: no such file"),
        (["--file", "rows.zip"], "", "file=rows.zip: expected a file of .parquet"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(arguments, stdin, message, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    with pytest.raises(SystemExit) as error:
        main(["predict", str(folder), *arguments])
    assert message in error.value.code
    assert "\n" not in error.value.code


def test_line_of_text_for_a_task_of_pairs_says_which_columns_are_needed(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n"))
    with pytest.raises(SystemExit) as error:
        main(["predict", str(run)])
    assert "the task reads sentence1 and sentence2; " in error.value.code
    assert "give rows with the columns sentence1 and sentence2" in error.value.code


def test_model_without_a_head_is_refused(tmp_path, monkeypatch):
    sparse_model().base_model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\n"))
    with pytest.raises(SystemExit, match="BertModel: has no head"):
        main(["predict", str(tmp_path), "--dense"])


def test_a_missing_value_of_a_column_with_categories_is_an_empty_text():
    rows = pd.DataFrame({"text": pd.Categorical(["a b", None, "a b"])})
    assert predict.texts_of(rows, "text") == ["a b", "", "a b"]
