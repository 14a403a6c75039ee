"""Zeros counted from files of any origin, and the command ``kd-prune sparsity <folder>``."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
)

from kd_prune.checkpoint_sparsity import count_saved, read_tensors
from kd_prune.cli.main import main
from kd_prune.hf import encoder_scope
from kd_prune.pruning import SparsityReport

SIZES = {"vocab_size": 20, "max_position_embeddings": 8}


def sparse(model, share=0.5):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand(parameter.shape, generator=generator) < share] = 0.0
    return model


def bert():
    return sparse(
        BertForSequenceClassification(
            BertConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=11,
                       num_attention_heads=2, **SIZES)
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        bert,
        lambda: sparse(
            DistilBertModel(DistilBertConfig(dim=8, hidden_dim=16, n_layers=2, n_heads=2, **SIZES))
        ),
    ],
)
@pytest.mark.parametrize("shards", ["1GB", "4KB"])
def test_count_saved_equals_count_of_the_model(make, shards, tmp_path):
    model = make()
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "4KB")
    expected = SparsityReport.count(model, set(encoder_scope(model).select(model)))
    found = count_saved(tmp_path)
    assert {t.name: t for t in found.tensors} == {t.name: t for t in expected.tensors}
    assert found.sparsity == expected.sparsity > 0.4


def test_count_saved_layers_are_in_numerical_order(tmp_path):
    bert().save_pretrained(tmp_path)
    layers = [int(t.name.split(".")[3]) for t in count_saved(tmp_path).tensors if t.in_scope]
    assert layers == sorted(layers)


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}]
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_count_saved_torch_files_equal_count_of_the_model(tmp_path, wrap, name):
    model = bert()
    torch.save(wrap(model.state_dict()), tmp_path / name)
    expected = SparsityReport.count(model, set(encoder_scope(model).select(model)))
    assert count_saved(tmp_path).sparsity == expected.sparsity
    assert count_saved(tmp_path / name).model_sparsity == expected.model_sparsity


def test_count_saved_tied_weights_count_once(tmp_path):
    model = BertForMaskedLM(
        BertConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2,
                   num_attention_heads=2, **SIZES)
    )  # fmt: skip
    torch.save(model.state_dict(), tmp_path / "model.pt")
    expected = SparsityReport.count(model, set(encoder_scope(model).select(model)))
    assert count_saved(tmp_path).parameters == expected.parameters


def test_count_saved_run_folder_counts_its_student(tmp_path):
    bert().save_pretrained(tmp_path / "student")
    assert count_saved(tmp_path) == count_saved(tmp_path / "student")


class Call:
    """Creates a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_read_tensors_pickled_call_is_refused_and_not_made(tmp_path):
    victim = tmp_path / "victim"
    torch.save({"weight": torch.ones(2), "call": Call(victim)}, tmp_path / "model.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"call": Call(victim)}))
    for name in ("model.pt", "old.pt"):
        with pytest.raises(ValueError, match=f"{name}: .*not loaded|damaged"):
            list(read_tensors(tmp_path / name))
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, r"contains no weight files \(\*\.safetensors"),
        ({"model.safetensors": b"half"}, "model.safetensors: damaged, or no weight file"),
        ({"model.pt": b"half"}, "model.pt: "),
    ],
)
def test_count_saved_unreadable_gives_one_line(tmp_path, content, says):
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=says) as error:
        count_saved(tmp_path)
    assert "\n" not in str(error.value)


def test_command_closed_pipe_ends_without_error(tmp_path):
    save_file({f"{i}.weight": torch.ones(2, 2) for i in range(2000)}, tmp_path / "m.safetensors")
    command = f"{sys.executable} -m kd_prune sparsity {tmp_path} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    assert done.stdout.startswith("Sparsity as counted")
    assert done.stderr == ""


def test_count_saved_without_tensors_or_folder_raises(tmp_path):
    save_file({"steps": torch.ones(1, dtype=torch.int64)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="contains no floating-point tensor"):
        count_saved(tmp_path)
    with pytest.raises(SystemExit, match=r"error: .*nowhere: no such folder or file"):
        main(["sparsity", str(tmp_path / "nowhere")])


def test_command_prints_the_report(tmp_path):
    bert().save_pretrained(tmp_path)
    command = [sys.executable, "-m", "kd_prune", "sparsity", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(count_saved(tmp_path))


@pytest.mark.parametrize("argument", ["--help", "/no/such/folder"])
def test_help_and_a_wrong_path_are_answered_without_torch(argument):
    code = (
        "import sys\nfrom kd_prune.cli.main import main\n"
        f"try:\n    main(['sparsity', {argument!r}])\n"
        "except SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_two_models_in_a_folder_are_not_added_up(tmp_path):
    torch.save({"state_dict": {"layer.0.weight": torch.eye(10)}}, tmp_path / "epoch=0.ckpt")
    torch.save({"state_dict": {"layer.0.weight": torch.ones(10, 10)}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"layer\.0\.weight is in epoch=0\.ckpt and in last\.ckpt"):
        count_saved(tmp_path)
    assert count_saved(tmp_path / "last.ckpt").sparsity == 0.0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.eye(10).to_sparse(), None),
        (torch.eye(10).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.eye(10, device="meta"), "on meta"),
    ],
    ids=["sparse", "float8", "meta"],
)
def test_tensor_that_cannot_be_counted_is_named(tmp_path, value, says):
    torch.save({1: torch.ones(3), "layer.0.weight": value}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"layer\.0\.weight is of .*{says or 'torch.sparse_coo'}"):
        count_saved(tmp_path / "x.pt")


def test_state_dict_without_names_is_refused(tmp_path):
    torch.save({"state_dict": [1]}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="its state_dict holds no tensors by name"):
        count_saved(tmp_path / "x.pt")
