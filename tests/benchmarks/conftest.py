"""The tiny model and rows shaped like GLUE's, with which benchmarks are run."""

from __future__ import annotations

import importlib.util
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd_prune.hf.tiny import make_model, sentences
from tests.benchmarks.arguments import FOLDER

COLUMNS = {"mrpc": ("sentence1", "sentence2"), "sst2": ("sentence",)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(str(tmp_path_factory.mktemp("model")), layers=1, hidden_size=16, heads=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows shaped like MRPC and SST-2: two classes, the columns of GLUE."""
    folder = tmp_path_factory.mktemp("glue")
    for task, columns in COLUMNS.items():
        (folder / task).mkdir()
        for split, count in (("train", 64), ("validation", 32), ("test", 32)):
            rows = [
                dict(zip(columns, (row["things"], row["which"]), strict=False))
                | {"label": int(row["label"] < "j"), "idx": i}
                for i, row in enumerate(sentences(count, seed=len(split)))
            ]
            pq.write_table(pa.Table.from_pylist(rows), folder / task / f"{split}.parquet")
    return folder


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Run a benchmark's `main`; its figures are written to `results` in the test's folder."""
    monkeypatch.setenv("KD_PRUNE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("KD_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "common", raising=False)

    def run(name, *arguments, **patches):
        spec = importlib.util.spec_from_file_location(f"bench_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        for what, value in patches.items():
            monkeypatch.setattr(module, what, value)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        module.main()
        return tmp_path / "results"

    yield run
    sys.modules.pop("common", None)
