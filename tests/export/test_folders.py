"""Exported folders: whole or absent, and readable by every command."""

from __future__ import annotations

import json

import pytest
import torch
from hf.families import batch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kd_prune.checkpoint_sparsity import count_saved
from kd_prune.errors import ConfigError
from kd_prune.export import onnx_format
from kd_prune.export.folders import Export, export
from kd_prune.export.source import Source

from .models import same_bits, save_student, sparse_model
from .runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def read(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def test_packed_export_of_a_run_is_its_student_to_the_bit(run, tmp_path):
    done = export(Source.find(str(run)), Export(form="packed"), tmp_path / "out")
    assert {file.name for file in done.folder.iterdir()} == {
        *("config.json", "packed.safetensors", "README.md", "kd_prune.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert len({file.stat().st_mode for file in done.folder.iterdir()}) == 1
    expected = sparse_model().state_dict()
    found = read(done.folder).state_dict()
    assert all(same_bits(found[name], expected[name]) for name in expected)
    assert done.bytes[1] == (done.folder / "packed.safetensors").stat().st_size
    assert json.loads((done.folder / "kd_prune.json").read_text())["task"] == {
        "name": "mrpc",
        "text": ["sentence1", "sentence2"],
        "label": "label",
        "max_length": 16,
    }


def test_sparsity_of_a_packed_folder_is_counted_without_unpacking(run, tmp_path):
    export(Source.find(str(run)), Export(form="packed"), tmp_path / "out")
    dense, packed = count_saved(run / "student"), count_saved(tmp_path / "out")
    assert {(t.name, t.shape, t.zeros) for t in packed.tensors} == {
        (t.name, t.shape, t.zeros) for t in dense.tensors
    }


def test_packed_folder_is_exported_again_in_another_format(run, tmp_path):
    export(Source.find(str(run)), Export(form="packed"), tmp_path / "packed")
    again = export(Source.find(str(tmp_path / "packed")), Export(form="fp16"), tmp_path / "fp16")
    tensors = load_file(again.folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(
        torch.equal(tensors[name], tensor.half())
        for name, tensor in sparse_model().state_dict().items()
        if name in tensors
    )


def test_fp16_folder_reads_as_float16_and_answers_nearly_the_same(run, tmp_path):
    export(Source.find(str(run)), Export(form="fp16"), tmp_path / "out")
    model = read(tmp_path / "out")
    assert model.dtype == torch.float16
    inputs = {name: value for name, value in batch().items() if name != "labels"}
    with torch.no_grad():
        found, expected = model.float()(**inputs).logits, sparse_model()(**inputs).logits
    assert torch.allclose(found, expected, atol=0.02)
    assert not torch.equal(found, expected)


def test_model_folder_that_is_read_only_stays_as_it_is(run, tmp_path):
    before = {file.name: file.read_bytes() for file in (run / "student").iterdir()}
    export(Source.find(str(run)), Export(form="packed"), tmp_path / "out")
    assert before == {file.name: file.read_bytes() for file in (run / "student").iterdir()}


def test_export_is_kept_unless_it_is_to_be_replaced(run, tmp_path):
    out = tmp_path / "out"
    source = Source.find(str(run))
    export(source, Export(form="packed"), out)
    with pytest.raises(ConfigError, match=r"^out=.*exists already; replace it with --replace"):
        export(source, Export(form="fp16"), out)
    assert (out / "packed.safetensors").is_file()
    export(source, Export(form="fp16"), out, replace=True)
    assert not (out / "packed.safetensors").exists()


def test_nothing_but_an_export_is_replaced(run, tmp_path):
    source, settings = Source.find(str(run)), Export(form="packed")
    for out in (run / "student", run, run.parent):
        with pytest.raises(ConfigError, match="is or contains the folder of the model itself"):
            export(source, settings, out, replace=True)
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ConfigError, match="is no exported folder; name another one"):
            export(source, settings, out, replace=True)
    assert (run / "student" / "model.safetensors").is_file()
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_relative_path_means_the_same_folder(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", milestone=True)
    monkeypatch.chdir(run / "milestones")
    assert Source.find("0.5").students[0].sparsity == 0.5
    monkeypatch.chdir(run / "student")
    assert Source.find(".").default_out("packed") == run / "student-packed"


def test_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("kd_prune.export.packed_folder.save_file", full)
    with pytest.raises(OSError, match="no space"):
        export(Source.find(str(run)), Export(form="packed"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "zip"}, "format=zip: expected one of packed, fp16, onnx, openvino"),
        ({"form": "packed", "values": "int4"}, "values=int4: expected one of"),
        ({"form": "packed", "embeddings": "fp8"}, "embeddings=fp8: expected one of"),
        ({"form": "fp16", "values": "fp16"}, "values=fp16: is a setting of --format packed"),
        ({"form": "onnx", "embeddings": "int8"}, "embeddings=int8: is a setting of"),
        ({"form": "packed", "int8": True}, "int8=true: is a setting of --format onnx"),
        ({"form": "packed", "texts": []}, "trim_vocabulary: there are no texts"),
    ],
)
def test_setting_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        Export(**settings)
    assert str(error.value).startswith(message)


def test_source_that_is_no_model_is_refused(tmp_path):
    for path, message in (
        (str(tmp_path), "contains no model"),
        (str(tmp_path / "none"), "no such folder"),
        (str(save_student(tmp_path / "m") / "config.json"), "a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            Source.find(path)
    config = json.loads((tmp_path / "m/config.json").read_text())
    config["architectures"] = ["Unheard"]
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="the architecture Unheard, which"):
        Source.find(str(tmp_path / "m")).load()
    lacking = save_student(tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.weight"
    save_file(
        {each: weights[each] for each in weights if each != name},
        lacking / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ConfigError, match=f"its weights lack {name}"):
        Source.find(str(lacking)).load()
    damaged = save_student(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"x" * 99)
    with pytest.raises(ConfigError, match="cannot be read") as error:
        Source.find(str(damaged)).load()
    assert "\n" not in str(error.value)


def test_missing_package_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        onnx_format.check_installed()
    assert str(error.value) == (
        "format=onnx: needs the package onnx, onnxscript, onnxruntime; pip install 'kd_prune[onnx]'"
    )


def test_tokenizer_of_an_export_gives_the_same_tokens(run, tmp_path):
    export(Source.find(str(run)), Export(form="packed"), tmp_path / "out")
    one, other = (AutoTokenizer.from_pretrained(f) for f in (run / "student", tmp_path / "out"))
    assert one("abc def")["input_ids"] == other("abc def")["input_ids"]
