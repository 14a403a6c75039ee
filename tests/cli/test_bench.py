"""kd-prune bench."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch

from kd_prune.cli import bench_folder, bench_sentences
from kd_prune.cli.main import main
from kd_prune.errors import ConfigError
from kd_prune.hf.tiny import make_model
from kd_prune.inference import library, rivals
from tests.export.models import save_student
from tests.export.runs import make_run

needs_llvmlite = pytest.mark.skipif(
    importlib.util.find_spec("llvmlite") is None, reason="pip install 'kd_prune[cpu]'"
)
QUICK = ["--rounds", "1", "--sentences", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "student"
    return make_model(str(folder), layers=1, hidden_size=16, heads=2)


class Rival:
    """A rival that is the model itself, or fails."""

    install, packages = "x", ()

    def __init__(self, name, reads_zeros=False, error=None, factor=1.0):
        self.name, self.reads_zeros, self.error, self.factor = name, reads_zeros, error, factor
        self.built = []

    def engines(self, model, work, threads):
        self.built.append(model)
        if self.error:
            raise self.error
        yield f"{self.name} fp32", lambda **batch: (self.factor * model(**batch)[0],)


@pytest.fixture(autouse=True)
def load(monkeypatch):
    """Load of the machine, of one process."""
    found = [1.0]
    monkeypatch.setattr(bench_folder.os, "getloadavg", lambda: (found[0], 0, 0), raising=False)
    monkeypatch.setattr(bench_folder.os, "cpu_count", lambda: 4)
    return found


@pytest.fixture
def opponents(monkeypatch):
    made = (
        Rival("openvino"),
        Rival("sparselab", reads_zeros=True),
        Rival("onnxruntime", error=ValueError("no such\nop")),
    )
    monkeypatch.setattr(rivals, "RIVALS", made)
    return made


@needs_llvmlite
def test_bench_prints_a_table_and_writes_it(model, opponents, tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na b c,1\na b c d e f,0\nb,1\n")
    given = ["--file", str(rows), "--text", "text", "--out", str(tmp_path / "out")]
    main(["bench", model, "--batch", "1", "2", "--rounds", "2", *given])
    printed = capsys.readouterr().out
    for name in ("torch fp32 (oneDNN)", "kd_prune", "openvino fp32", "sparselab fp32"):
        assert f"\n{name} " in printed
    assert "\nonnxruntime is left out: no such op\n" in printed
    assert f"3 sentences of {rows}, 3 to 8 tokens" in printed
    assert "warning" not in printed
    table = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert {row["batch_size"] for row in table} == {1, 2}
    assert {row["engine"] for row in table} > {"kd_prune", "openvino fp32", "sparselab fp32"}
    assert all(row["sentences_per_second"] > 0 for row in table)
    assert all(row["difference"] < 1e-5 for row in table if "bf16" not in row["engine"])
    assert {row["threads"] for row in table} == {torch.get_num_threads()}
    for size in (1, 2):  # one of torch's two ways is what the others are compared with
        dense = [row for row in table if row["batch_size"] == size and "torch" in row["engine"]]
        assert 1 in [row["speed_up"] for row in dense]
    assert (tmp_path / "out" / "bench.png").stat().st_size > 1000


@needs_llvmlite
def test_curve_measures_the_shape_at_other_compressions(model, opponents, tmp_path, capsys):
    given = ["--length", "6", "--batch", "2", "--out", str(tmp_path)]
    main(["bench", model, *QUICK, *given, "--curve", "1", "4"])
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "bench.json").read_text())
    found = sorted({round(row["compression"], 1) for row in table})
    assert found == [1.0, pytest.approx(4, abs=0.6)]  # the model itself has no zeros
    dense, sparse, failing = opponents
    assert len(dense.built) == len(failing.built) == 1  # zeros do not matter to them
    assert len(sparse.built) == 3
    assert printed.count("onnxruntime is left out") == 1
    assert all(row["difference"] < 1e-5 for row in table if "bf16" not in row["engine"])


@needs_llvmlite
def test_a_rival_that_computes_something_else_is_warned_about(model, monkeypatch, capsys):
    monkeypatch.setattr(rivals, "RIVALS", (Rival("openvino", factor=1.01),))
    main(["bench", model, *QUICK, "--batch", "1", "--length", "5"])
    printed = capsys.readouterr().out
    assert "warning: openvino fp32 does not compute what the model does: its outputs differ by" in (
        printed
    )
    assert printed.count("warning") == 1


def test_a_busy_machine_is_warned_about(load, capsys):
    bench_folder.warn_if_busy()
    assert capsys.readouterr().out == ""
    load[0] = 2.5
    bench_folder.warn_if_busy()
    said = "warning: the machine is busy (load 2.5, 4 cores): times vary\n"
    assert capsys.readouterr().out == said


@needs_llvmlite
def test_bench_without_rivals_and_with_missing_ones(model, monkeypatch, capsys):
    absent = Rival("sparselab")
    absent.packages = ("no_such_package",)
    monkeypatch.setattr(rivals, "RIVALS", (Rival("openvino"), absent))
    given = ["bench", model, *QUICK, "--batch", "1", "--length", "5"]
    main([*given, "--rivals"])
    assert "openvino" not in capsys.readouterr().out
    main(given)
    printed = capsys.readouterr().out
    assert "not installed, so not measured: sparselab (pip install x)\n" in printed
    assert "\nopenvino fp32 " in printed
    with pytest.raises(SystemExit) as stopped:
        main([*given, "--rivals", "sparselab"])
    assert str(stopped.value) == (
        "error: --rivals=sparselab: needs the package no_such_package; pip install x"
    )


class Options:
    """What the sentences depend on."""

    length, file, text, sentences = None, None, None, 3


def sentences(folder, **settings):
    from kd_prune.export.source import Source

    options = type("Given", (Options,), settings)
    source = Source.find(str(folder))
    return bench_sentences.choose_sentences(
        source, bench_folder.load_model(folder / "student"), options
    )


def test_sentences_are_those_of_the_runs_task(tmp_path):
    rows = tmp_path / "data" / "mrpc" / "validation.csv"
    rows.parent.mkdir(parents=True)
    texts = ["w10 w11 w12"] * 4 + ["w10 " * 40] * 2
    rows.write_text("sentence1,sentence2,label\n" + "".join(f"{t},w13,1\n" for t in texts))
    task = {
        "name": "mrpc",
        "path": str(tmp_path / "data"),
        "subset": "mrpc",
        "text": ["sentence1", "sentence2"],
        "validation": ["validation"],
        "max_length": 16,
    }
    run = make_run(tmp_path / "run", task=task, cache_dir=str(tmp_path / "cache"))
    found = sentences(run)
    assert str(found).startswith("3 sentences of the task mrpc, ")
    lengths = [len(row) for row in found.tokens]
    assert len(lengths) == 3  # evenly spaced ones of the six
    assert lengths[0] == lengths[1] < lengths[2] == 16  # cut off where the task does
    (fixed,) = {len(row) for row in sentences(run, length=9).tokens}
    assert fixed == 9


def test_sentences_are_of_one_length_where_the_task_cannot_be_read(tmp_path, capsys):
    task = {"name": "x", "path": str(tmp_path), "text": ["a"], "max_length": 16}
    run = make_run(tmp_path / "run", task=task, cache_dir=str(tmp_path / "cache"))
    found = sentences(run)
    assert "the rows of its task cannot be read" in capsys.readouterr().out
    assert len({len(row) for row in found.tokens}) == 1
    assert "random words" in str(found)


@pytest.mark.parametrize("change", [{"name": None}, {}])
def test_the_cache_is_this_machines_whatever_the_run_says(change, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KD_PRUNE_CACHE", str(tmp_path / "cache"))
    task = {"name": "x", "path": {"_target_": "x"}, "text": ["things", "which"]} | change
    recorded = {name: value for name, value in task.items() if value}
    run = make_run(tmp_path / "run", task=recorded, cache_dir=str(tmp_path / "elsewhere"))
    found = sentences(run)
    assert not (tmp_path / "elsewhere").exists()
    assert str(found).startswith("3 sentences of ")
    assert ("cannot be read" in capsys.readouterr().out) == bool(change)


def test_random_sentences_end_as_the_model_expects(tmp_path):
    """A head of BART's reads the state of the last end-of-sentence token."""
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / "student")
    save_student(run / "student", "bart")
    rows = sentences(run, length=9).tokens
    assert {(len(row), row[-1], row.count(2)) for row in rows} == {(9, 2, 1)}


def test_task_of_a_foreign_folder_calls_nothing(tmp_path):
    """A recorded path that is to be made is that of the embedded task, whatever it says."""
    recorded = {
        "name": "x",
        "path": {"_target_": "os.system", "command": f"touch {tmp_path / 'called'}"},
        "text": ["things", "which"],
    }
    columns = bench_sentences.task_texts(recorded, tmp_path / "cache")
    assert not (tmp_path / "called").exists()
    assert len(columns) == 2
    with pytest.raises(ConfigError, match="not a column"):
        bench_sentences.task_texts(recorded | {"text": ["nothing"]}, tmp_path / "cache")


@needs_llvmlite
def test_bench_has_a_row_in_int8_where_layers_have_blocks_of_zeros(
    model, tmp_path, monkeypatch, capsys
):
    from transformers import AutoModelForSequenceClassification

    from kd_prune.inference import crossover
    from kd_prune.inference.jit.target import host

    costs = crossover.Costs(dense=1.0, fixed=0.0, per_step=0.0)  # all that can be is converted
    monkeypatch.setattr(crossover, "measure", lambda *shape: costs)
    pruned = AutoModelForSequenceClassification.from_pretrained(model)
    for name, weight in pruned.named_parameters():
        if "dense.weight" in name:
            weight.data.view(-1, 8)[:, :4] = 0
    pruned.save_pretrained(tmp_path / "pruned")
    main(["bench", str(tmp_path / "pruned"), "--batch", "2", "--rounds", "1", "--length", "4"])
    printed = capsys.readouterr().out
    assert ("kd_prune int8: " in printed) == bool(host().int8)
    rows = [line for line in printed.splitlines() if line.startswith("kd_prune int8  ")]
    assert len(rows) == bool(host().int8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such"], "error: /no/such: no such folder"),
        (["{empty}"], "error: folder="),
        (["{model}", "--length", "999"], "error: --length=999: "),
        (["{model}", "--length", "9", "--file", "{rows}"], "give --length or --file"),
        (["{model}", "--file", "/no/such.csv"], "error: file=/no/such.csv: no such file"),
        (["{model}", "--file", "{rows}", "--text", "b"], "error: text=b: not a column"),
        (["{model}", "--file", "{none}"], "there are no rows"),
        (["{model}", "{model}", "--curve"], "error: --curve=2: expected one folder"),
        (["{cut}"], "the folder cannot be read"),
        (["{model}", "--out", "{rows}"], "File exists"),
    ],
)
@needs_llvmlite
def test_bench_refuses_in_one_line(arguments, message, model, opponents, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("a\n1\n")
    (tmp_path / "none.csv").write_text("a\n")
    places = {"empty": tmp_path / "empty", "model": model, "rows": tmp_path / "rows.csv"}
    places |= {"none": tmp_path / "none.csv", "cut": tmp_path / "cut"}
    shutil.copytree(model, places["cut"])
    weights = places["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *(word.format(**places) for word in arguments)])
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_bench_without_llvmlite_says_what_to_install(model, opponents, monkeypatch):
    library._load.cache_clear()
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.delitem(sys.modules, "kd_prune.cli.bench_folder", raising=False)
    for name in [name for name in sys.modules if name.startswith("kd_prune.inference.jit")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: llvmlite: is not installed.*kd_prune\[cpu\]'$"):
        main(["bench", model, *QUICK])


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--batch", "0"], "above 0"), (["--curve", "0.5"], "at least 1"), (["--rivals", "x"], "x")],
)
def test_bench_refuses_values(option, message, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "x", *option])
    assert message in capsys.readouterr().err
