"""``kd-prune`` as installed: from a wheel's files, without a clone, in an empty folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import kd_prune

from .script import SMALL

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
SCRIPT = "import sys; from {module} import {name}; sys.argv[0] = 'kd-prune'; sys.exit({name}())"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that a wheel is unpacked into; where no wheel can be built, what it would hold."""
    folder = tmp_path_factory.mktemp("site")
    if find_spec("hatchling"):
        build = "pip wheel --no-deps --no-build-isolation --quiet --wheel-dir"
        subprocess.run([sys.executable, "-m", *build.split(), folder, ROOT], check=True)
        (wheel,) = folder.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(folder)
        return folder
    skip = shutil.ignore_patterns("__pycache__")
    for package in WHEEL["packages"]:
        shutil.copytree(ROOT / package, folder / package, ignore=skip)
    for source, place in WHEEL["force-include"].items():
        shutil.copytree(ROOT / source, folder / place, ignore=skip)
    return folder


@pytest.fixture
def installed(site, cache, tmp_path):
    """Run the console script of the wheel in an empty folder."""
    module, _, name = PROJECT["project"]["scripts"]["kd-prune"].partition(":")
    work = tmp_path / "work"
    work.mkdir()
    script = tmp_path / "kd-prune"
    script.write_text(SCRIPT.format(module=module, name=name))
    environment = os.environ | {
        "KD_PRUNE_CACHE": str(cache),
        "PYTHONPATH": str(site),
        "PYTHONWARNINGS": "ignore",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *arguments]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)

    run.folder = work
    return run


@pytest.mark.slow
def test_kd_prune_train_runs_the_main_job_into_outputs(installed):
    done = installed("train", *SMALL)
    assert done.returncode == 0, done.stderr
    (result,) = installed.folder.glob("outputs/tiny/*/result.json")
    student = json.loads(result.read_text())["stages"]["student"]
    assert student["sparsity"] == pytest.approx(0.95, abs=1e-3)
    again = installed("eval", str(result.parent), "hydra.run.dir=evaluated")
    assert again.returncode == 0, again.stderr
    found = json.loads((installed.folder / "evaluated/evaluation.json").read_text())
    assert found["metrics"] == student["metrics"]
    counted = installed("sparsity", str(result.parent))
    assert f"{100 * student['sparsity']:.2f} %" in counted.stdout, counted.stderr
    summary = installed("summary", "outputs", "--out", "summary")
    assert summary.returncode == 0, summary.stderr
    assert (installed.folder / "summary/report.html").is_file()


def test_kd_prune_train_reads_a_task_of_ones_own(installed):
    """Rows in a csv file and a task in a folder of configuration: nothing of a clone is needed."""
    work = installed.folder
    (work / "mine/task").mkdir(parents=True)
    (work / "mine/task/reviews.yaml").write_text(
        "defaults: [base]\nname: reviews\npath: rows\ntext: [text]\n"
    )
    (work / "rows").mkdir()
    for split in ("train", "validation"):
        rows = [f"a {word} film,{i % 2}" for i, word in enumerate("abcdefgh")]
        (work / f"rows/{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    done = installed("train", "--config-dir", "mine", "task=reviews", "debug=fdr")
    assert done.returncode == 0, done.stderr
    assert list(work.glob("outputs/reviews/*/result.json"))
    wrong = installed("train", "task=reviews")
    assert "write <folder>/task/reviews.yaml and add --config-dir <folder>" in wrong.stderr


@pytest.mark.slow
def test_kd_prune_train_on_two_devices_starts_itself_again(installed):
    done = installed("train", *SMALL, "trainer=ddp", "trainer.devices=2", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert (installed.folder / "run/train_ddp_process_1.log").is_file()
    assert (installed.folder / "run/result.json").is_file()


HELPS = {
    ("--help",): ["train", "eval", "sparsity", "summary", "examples:"],
    ("train", "--help"): ["examples:", "main keys:", "sparsity.final", "task: base, cola"],
    ("eval", "--help"): ["examples:", "main keys:", "task.validation"],
    ("sparsity", "--help"): ["examples:", "a run folder, a model folder"],
    ("summary", "--help"): ["examples:", "--out"],
    ("train", "--hydra-help"): ["Hydra"],
}


@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
def test_help_names_examples_and_keys(installed, arguments):
    done = installed(*arguments)
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in HELPS[arguments]), done.stdout


def test_version_is_that_of_the_project(installed):
    assert installed("--version").stdout == f"kd-prune {PROJECT['project']['version']}\n"
    assert kd_prune.__version__ == PROJECT["project"]["version"]
    assert importlib.metadata.version("kd_prune") == PROJECT["project"]["version"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("trian", "did you mean train?"),
        ("/runs/a", "there are train, eval, sparsity, summary, export, predict, bench"),
    ],
)
def test_an_unknown_command_is_one_line(installed, command, says):
    done = installed(command)
    assert done.returncode == 1
    assert done.stderr == f"error: kd-prune {command}: there is no such command; {says}\n"


def test_eval_without_a_model_is_one_line(installed):
    for arguments in ([], ["task=mrpc"], ["-m"]):
        done = installed("eval", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: kd-prune eval: name the model first")


NO_TORCH = """
import sys
from kd_prune.cli.main import main
try:
    main({arguments})
except SystemExit:
    pass
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]], ids=str)
def test_help_and_version_import_no_torch(arguments):
    code = NO_TORCH.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


PUBLIC = """
import sys, kd_prune
assert "torch" not in sys.modules
names = {name: getattr(kd_prune, name) for name in kd_prune.__all__}
assert set(kd_prune.__all__) <= set(dir(kd_prune))
from kd_prune import SparsityCallback
assert SparsityCallback is names["SparsityCallback"]
assert not {"hydra", "omegaconf", "datasets", "kd_prune.hf"} & set(sys.modules)
try:
    kd_prune.nothing
except AttributeError as error:
    print(error)
"""


def test_public_names_are_imported_when_they_are_used():
    done = subprocess.run([sys.executable, "-c", PUBLIC], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "module 'kd_prune' has no attribute 'nothing'\n", done.stderr
