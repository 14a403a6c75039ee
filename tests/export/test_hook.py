"""`import kd_prune` registers the reader in either order, and is cheap; without it: refused."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from kd_prune import transformers_hook
from kd_prune.export import quantizer
from kd_prune.export.packed_folder import save_packed
from tests.forked import run_code

from .models import sparse_model, tokenizer

LOAD = """
from transformers import AutoModelForSequenceClassification as Auto
model = Auto.from_pretrained({folder!r})
assert float((model.bert.encoder.layer[0].output.dense.weight == 0).float().mean()) > 0.8
print("read")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed")
    tokenizer().save_pretrained(path)
    save_packed(sparse_model(), path)
    return str(path)


def python(code):
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True)


def test_packed_folder_is_read_after_the_import(folder):
    """And the hook leaves no trace: the module has its own loader, `sys.meta_path` is as before."""
    done = python(f"""
        import sys
        import kd_prune
        ours = [f for f in sys.meta_path if type(f).__module__.startswith("kd_prune")]
        assert len(ours) == 1
        assert not [name for name in sys.modules if name.startswith("transformers")]
        import importlib.util, inspect
        importlib.util.find_spec("transformers.quantizers.auto")  # asked for, not imported
        from transformers import AutoModelForSequenceClassification as Auto
        model = Auto.from_pretrained({folder!r})
        assert float((model.bert.encoder.layer[0].output.dense.weight == 0).float().mean()) > 0.8
        assert not [f for f in sys.meta_path if type(f).__module__.startswith("kd_prune")]
        module = sys.modules["transformers.quantizers.auto"]
        assert type(module.__loader__).__name__ == "SourceFileLoader", module.__loader__
        assert module.__spec__.loader is module.__loader__
        assert "def register_quantizer" in inspect.getsource(module)
        print("read")
        """)
    assert done.stdout == "read\n", done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import transformers, kd_prune",
        "import transformers.quantizers.auto, kd_prune",
        "from transformers import AutoModelForSequenceClassification; import kd_prune",
        "from kd_prune import SparsityCallback",
        "import kd_prune.hf",
        "import kd_prune.export.quantizer",
    ],
)
def test_packed_folder_is_read_in_any_order_of_imports(first, folder):
    done = python(f"{first}\n{LOAD.format(folder=folder)}")
    assert done.stdout.endswith("read\n"), done.stderr[-2000:]


def test_packed_folder_is_refused_without_the_import(folder):
    """By every class that could read it; none starts with random matrices."""
    _, stdout, stderr = run_code(f"""
        import sys
        from transformers import AutoModel, AutoModelForSequenceClassification, pipeline
        from transformers import BertForSequenceClassification, BertModel
        for read in (AutoModel, AutoModelForSequenceClassification, BertModel,
                     BertForSequenceClassification):
            try:
                read.from_pretrained({folder!r})
                print("read by", read.__name__)
            except OSError as error:
                print(str(error).splitlines()[0])
        try:
            pipeline("text-classification", model={folder!r})
            print("read by pipeline")
        except (OSError, ValueError) as error:
            print("refused")
        assert not [name for name in sys.modules if name.startswith("kd_prune")]
        """)
    lines = stdout.splitlines()
    assert len(lines) == 5, stderr[-2000:]
    assert not [line for line in lines if line.startswith("read by")]
    assert all("no file named model.safetensors" in line for line in lines[:4])


def test_reader_is_registered_at_once_where_transformers_is_loaded(monkeypatch):
    from transformers.quantizers import auto

    assert auto.AUTO_QUANTIZER_MAPPING["kd_prune"] is quantizer.PackedQuantizer
    called, before = [], list(sys.meta_path)
    monkeypatch.setattr(transformers_hook, "register_reader", lambda: called.append(1))
    transformers_hook.install()
    assert called == [1]
    assert sys.meta_path == before


def test_version_of_transformers_without_the_hooks_gets_one_line(monkeypatch, caplog):
    """An import of transformers must not fail because of kd_prune."""
    monkeypatch.setitem(sys.modules, "kd_prune.export.quantizer", None)
    transformers_hook.register_reader()
    assert "cannot be read with this version of transformers" in caplog.text
    assert caplog.text.count("\n") == 1
