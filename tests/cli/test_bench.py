"""kd-prune bench."""

import importlib.util
import json

import pytest

from kd_prune.cli.main import main
from kd_prune.hf.tiny import make_model

needs_llvmlite = pytest.mark.skipif(
    importlib.util.find_spec("llvmlite") is None, reason="pip install 'kd_prune[cpu]'"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "student"
    return make_model(str(folder), layers=1, hidden_size=16, heads=2)


@needs_llvmlite
def test_bench_prints_a_table_and_writes_it(model, tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na b c,1\na b c d e f,0\nb,1\n")
    given = ["--file", str(rows), "--columns", "text", "--out", str(tmp_path / "out")]
    main(["bench", model, "--batch", "1", "2", "--rounds", "2", *given])
    printed = capsys.readouterr().out
    assert "torch fp32 (oneDNN)" in printed
    assert "kd_prune" in printed
    table = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert {row["batch_size"] for row in table} == {1, 2}
    assert all(row["sentences_per_second"] > 0 for row in table)
    for size in (1, 2):  # one of torch's two ways is what the others are compared with
        dense = [row for row in table if row["batch_size"] == size and "fp32" in row["engine"]]
        assert 1 in [row["speed_up"] for row in dense]
    assert (tmp_path / "out" / "bench.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such"], "error: /no/such: no such folder"),
        (["{empty}"], "error: folder="),
        (["{model}", "--length", "999"], "error: --length=999: "),
        (["{model}", "--file", "/no/such.csv"], r"error: --file=/no/such.csv: cannot be read"),
        (["{model}", "--file", "{rows}", "--columns", "b"], "--columns=[b]: not in the file"),
    ],
)
@needs_llvmlite
def test_bench_refuses_in_one_line(arguments, message, model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("a\n1\n")
    places = {"empty": tmp_path / "empty", "model": model, "rows": tmp_path / "rows.csv"}
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *(word.format(**places) for word in arguments)])
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_bench_refuses_a_batch_of_none(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "x", "--batch", "0"])
    assert "expected a number above 0" in capsys.readouterr().err
