"""Every example runs, learns its task, and ends at the sparsity that it asks for."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from tests.processes import finish, start

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGE = 110  # lines


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test():
    tested = {
        "cnn",
        "digits",
        "distil_any_module",
        "fsdp2",
        "hf_distillation",
        "lstm",
        "torch_loop",
    }
    tested |= {"two_four"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_fits_on_a_page_and_shows_its_command(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= PAGE
    assert any(line.strip().startswith(f"python examples/{path.name}") for line in lines[:6])


def test_cnn_learns_at_its_sparsity():
    assert load("cnn").main() > 0.9  # a quarter by guessing


def test_lstm_learns_at_its_sparsity():
    assert load("lstm").main() < 0.1  # 0.75 by always predicting the mean


def test_torch_loop_learns_and_prints_counted_sparsity(capsys):
    assert load("torch_loop").main() < 0.1  # 0.5 by always predicting the mean
    printed = capsys.readouterr().out
    assert "sparsity as counted: 0.9000" in printed
    assert "2.weight: 64x64, 3,686 pruned" in printed


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode:UserWarning")
def test_hf_distillation_prunes_the_encoder_and_leaves_the_teacher():
    sparsity, module = load("hf_distillation").main(epochs=2)
    assert sparsity == (8 * round(0.95 * 1024) + 4 * round(0.95 * 2048)) / 16384
    assert not module.teacher.training
    zeros = [int((p == 0).sum()) for p in module.teacher.parameters() if p.ndim == 2]
    assert sum(zeros) <= 32  # the padding token's embedding
    student = dict(module.student.named_parameters())
    assert (student["bert.pooler.dense.weight"] != 0).all()
    assert torch.isfinite(student["classifier.weight"]).all()


def test_distil_any_module_learns_from_its_teacher():
    taught, accuracy, sparsity = load("distil_any_module").main()
    assert taught > 0.9  # a fifth by guessing
    assert accuracy > 0.85
    assert sparsity == (round(0.9 * 64 * 32) + round(0.9 * 64 * 64)) / (64 * 96)


def test_two_four_keeps_two_of_every_four_weights():
    accuracy, network = load("two_four").main()
    assert accuracy > 0.9  # a quarter by guessing
    for index in (0, 2):
        groups = network[index].weight.detach().cpu().reshape(-1, 4)
        assert ((groups != 0).sum(1) == 2).all()
    assert (network[4].weight != 0).all()


def test_digits_compares_nets_with_equal_numbers_of_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    rows = load("digits").main(seeds=1, epochs=2)
    dense, sparse = rows[:4], rows[4:]
    assert [width for width, *_ in dense] == [0.25, 0.5, 0.75, 1.0]
    assert all(width == 1.0 and 0 < sparsity < 1 for width, sparsity, *_ in sparse)
    for narrow, pruned in zip(dense[2::-1], sparse, strict=True):
        assert abs(narrow[2] - pruned[2]) <= 1
    assert dense[3][3] > 0.5  # a tenth by guessing
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert len(capsys.readouterr().out.splitlines()) == 8


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is built without gloo")
def test_fsdp2_prunes_what_two_processes_share():
    (output,) = finish(start([{}], EXAMPLES / "fsdp2.py"))
    assert "Pruning 93,448 of 98,368 weights (95.00 %) in 9 tensors" in output
    assert re.search(r"in scope +95\.00 %", output)
