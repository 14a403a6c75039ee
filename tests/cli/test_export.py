"""``kd-prune export``: one line says what was written, or what cannot work."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from export.models import save_student
from export.runs import make_run
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kd_prune.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def refused(*arguments) -> str:
    with pytest.raises(SystemExit) as error:
        main(["export", *map(str, arguments)])
    assert isinstance(error.value.code, str)
    assert error.value.code.startswith("error: ")
    assert "\n" not in error.value.code
    return error.value.code


def test_export_writes_next_to_the_model_and_says_its_size(run, capsys):
    main(["export", str(run)])
    folder = run / "student-packed"
    said = capsys.readouterr().out
    assert said.startswith(f"{folder}: 0.0")
    assert "% of the dense model's" in said
    assert json.loads((folder / "kd_prune.json").read_text())["values"] == "lossless"
    assert "exists already" in refused(run)
    main(["export", str(run), "--values", "fp16", "--embeddings", "int8"])
    assert (run / "student-packed-fp16-embeddings-int8" / "packed.safetensors").is_file()


def test_export_of_several_seeds_and_options(run, tmp_path, capsys):
    other = make_run(tmp_path / "other", seed=2, accuracy=0.8)
    options = ["--values", "fp16", "--embeddings", "int8", "--out", str(tmp_path / "out")]
    main(["export", str(run), *options, "--seeds", str(other)])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "82.0±2.8" in card
    assert "packed, values fp16, embeddings int8" in card


def test_export_with_the_tokens_of_a_file(run, tmp_path, capsys):
    texts = ["abc", "cab"]
    pd.DataFrame({"text": texts, "n": [1, 2]}).to_csv(tmp_path / "rows.csv", index=False)
    out = tmp_path / "out"
    main(["export", str(run), "--out", str(out), "--trim-vocabulary", str(tmp_path / "rows.csv")])
    before = AutoTokenizer.from_pretrained(run / "student")
    after = AutoTokenizer.from_pretrained(out)
    for text in texts:
        found, expected = (t.convert_ids_to_tokens(t(text)["input_ids"]) for t in (after, before))
        assert found == expected
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.vocab_size == len(model.get_input_embeddings().weight)


def test_what_cannot_be_exported_is_one_line(run, tmp_path):
    assert "no such folder" in refused(tmp_path / "none")
    assert "contains no model" in refused(tmp_path)
    assert "is a setting of --format packed" in refused(run, "--format", "fp16", "--values", "fp16")
    assert "no such file" in refused(run, "--trim-vocabulary", tmp_path / "none.csv")
    broken = save_student(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"0" * 64)
    assert "cannot be read" in refused(broken)


def test_upload_that_fails_is_one_line_and_the_folder_stays(run, tmp_path):
    out = tmp_path / "out"
    said = refused(run, "--out", out, "--push-to-hub", "me/small")
    assert said.startswith("error: push_to_hub=me/small: the Hub did not take it")
    assert (out / "packed.safetensors").is_file()
