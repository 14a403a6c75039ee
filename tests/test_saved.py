"""``python -m kd_prune <folder>``: zeros counted from files, whoever wrote them."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
)

from kd_prune.__main__ import main
from kd_prune.hf.models import encoder_scope
from kd_prune.pruning import SparsityReport
from kd_prune.saved import count_saved, read_tensors

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
def test_as_counted_in_the_model(make, shards, tmp_path):
    model = make()
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "4KB")
    expected = SparsityReport.count(model, set(encoder_scope(model).select(model)))
    found = count_saved(tmp_path)
    assert {t.name: t for t in found.tensors} == {t.name: t for t in expected.tensors}
    assert found.sparsity == expected.sparsity > 0.4


def test_layers_come_in_their_own_order(tmp_path):
    bert().save_pretrained(tmp_path)
    layers = [int(t.name.split(".")[3]) for t in count_saved(tmp_path).tensors if t.in_scope]
    assert layers == sorted(layers)


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}]
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_files_of_torch(tmp_path, wrap, name):
    model = bert()
    torch.save(wrap(model.state_dict()), tmp_path / name)
    expected = SparsityReport.count(model, set(encoder_scope(model).select(model)))
    assert count_saved(tmp_path).sparsity == expected.sparsity
    assert count_saved(tmp_path / name).model_sparsity == expected.model_sparsity


def test_the_student_of_a_run_folder(tmp_path):
    bert().save_pretrained(tmp_path / "student")
    assert count_saved(tmp_path) == count_saved(tmp_path / "student")


class Call:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_called_by_what_is_read(tmp_path):
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
        ({}, r"no weights in there \(\*\.safetensors"),
        ({"model.safetensors": b"half"}, "model.safetensors: damaged, or no weights"),
        ({"model.pt": b"half"}, "model.pt: "),
    ],
)
def test_one_line_for_what_cannot_be_read(tmp_path, content, says):
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=says) as error:
        count_saved(tmp_path)
    assert "\n" not in str(error.value)


def test_a_reader_that_has_seen_enough(tmp_path):
    save_file({f"{i}.weight": torch.ones(2, 2) for i in range(2000)}, tmp_path / "m.safetensors")
    command = f"{sys.executable} -m kd_prune {tmp_path} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    assert done.stdout.startswith("Sparsity as counted")
    assert done.stderr == ""


def test_a_folder_without_tensors_and_none_at_all(tmp_path):
    save_file({"steps": torch.ones(1, dtype=torch.int64)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="there is no tensor in it"):
        count_saved(tmp_path)
    with pytest.raises(SystemExit, match=r"error: .*nowhere: no such folder or file"):
        main([str(tmp_path / "nowhere")])


def test_the_command(tmp_path):
    bert().save_pretrained(tmp_path)
    command = [sys.executable, "-m", "kd_prune", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(count_saved(tmp_path))
