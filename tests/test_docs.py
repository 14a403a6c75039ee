"""Commands, overrides, YAML files, tables and links of all pages work as printed."""

from __future__ import annotations

import inspect
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pages
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from lightning.pytorch import Trainer

from kd_prune.cli.arguments import expanded
from kd_prune.cli.job import make_job
from kd_prune.distillation import Activations, Objective
from kd_prune.export.folders import Export, export
from kd_prune.export.source import Source
from kd_prune.hf import PretrainedEncoder, Task, load_data
from kd_prune.hf.tiny import make_model
from kd_prune.lit import SparsityCallback
from kd_prune.pipeline import Job

COMMANDS = sorted({c for page in pages.PAGES for c in pages.commands(page)})
RECIPES = pages.commands("CONTRIBUTING.md")  # tests/test_contributing.py
TRAIN = [
    command
    for command in COMMANDS
    if command.startswith(("python train.py", "kd-prune train")) and command not in RECIPES
]
OTHERS = [
    command
    for command in COMMANDS
    if command.startswith("kd-prune ") and not command.startswith("kd-prune train")
]
MAKE = sorted({command.split()[1] for command in COMMANDS if command.startswith("make ")})
SPANS = sorted({span for page in pages.PAGES for span in pages.override_spans(page)})
BUILT = ("sparsity", "distillation", "student", "trainer")
NOT_INSTALLED = ("hydra/launcher=ray",)  # its plugin does not install next to joblib's


def block(page, text):
    """The YAML block of a page that holds a text."""
    (found,) = [block for block in pages.blocks(page, "yaml") if text in block]
    return found


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """Compose a job; YAML files that docs/ shows lie in the folder of --config-dir."""
    folder = tmp_path_factory.mktemp("docs")
    files = {
        "task/reviews.yaml": block("docs/tasks.md", "name: reviews"),
        "task/prices.yaml": block("docs/tasks.md", "name: prices"),
        "experiment/mine.yaml": block("docs/overrides.md", "mine.score"),
    }
    for name, text in files.items():
        path = folder / "my_conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def compose_job(words):
        own = [f"hydra.searchpath=[file://{folder / 'my_conf'}]", f"cache_dir={folder / 'cache'}"]
        given = [word for word in words if not word.startswith("cache_dir=")]
        with initialize_config_dir(version_base="1.3", config_dir=str(pages.ROOT / "conf")):
            return compose("train", overrides=[*given, *own])

    return compose_job


def overrides_of(command):
    """Overrides of a training command, and whether it is a sweep."""
    given = pages.words(command)[2:]
    if "--config-dir" in given:
        at = given.index("--config-dir")
        given = given[:at] + given[at + 2 :]
    sweep = "-m" in given
    return [word for word in given if word != "-m"], sweep


def test_pages_show_commands_and_overrides():
    assert len(TRAIN) >= 20
    assert len(OTHERS) >= 6
    assert len(SPANS) >= 40


@pytest.mark.parametrize("command", TRAIN)
def test_training_command_composes(command, composed):
    words, sweep = overrides_of(command)
    words = [expanded(word, [pages.ROOT / "conf"]) for word in words]
    if not sweep:
        composed(words)
        return
    parsed = OverridesParser.create().parse_overrides(words)
    jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    assert len(jobs) > 1 or not any(override.is_sweep_override() for override in parsed)
    composed(jobs[0])


@pytest.mark.parametrize("command", OTHERS)
def test_other_command_accepts_its_arguments(command, composed, monkeypatch, tmp_path, capsys):
    from kd_prune import checkpoint_sparsity
    from kd_prune.cli import bench, main, predict, summary, train
    from kd_prune.cli import export as export_command
    from kd_prune.export import hub
    from kd_prune.export.folders import Exported

    (tmp_path / "x").mkdir()  # the pages' placeholders stand for it
    monkeypatch.chdir(tmp_path)
    called = []
    monkeypatch.setattr(checkpoint_sparsity, "count_saved", called.append)
    monkeypatch.setattr(summary, "summarize_folders", lambda *given, **named: called.append(given))
    monkeypatch.setattr(bench, "run", lambda given: called.append(given) or [])
    monkeypatch.setattr(train, "main", lambda overrides: called.append(composed(overrides)))
    exported = Exported(folder=tmp_path, bytes=(2, 1), tokens=(2, 1), seconds=0.0)
    monkeypatch.setattr(export_command, "run", lambda given: called.append(given) or exported)
    monkeypatch.setattr(hub, "push", lambda *given, **named: "")
    monkeypatch.setattr(predict, "run", called.append)
    arguments = pages.words(command)[1:]
    main.main(arguments)
    if arguments == ["--help"]:
        printed = capsys.readouterr().out
        assert all(name in printed for name in main.COMMANDS)
    else:
        assert len(called) == 1


@pytest.mark.parametrize("target", MAKE)
def test_make_target_exists(target):
    done = subprocess.run(
        ["make", "-n", target, "DATA=x", "MODEL=x"],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("span", SPANS)
def test_overrides_compose_and_those_of_the_method_build_a_job(span, composed, tmp_path):
    words = pages.words(span)
    if any(word in NOT_INSTALLED for word in words):
        return
    parsed = OverridesParser.create().parse_overrides(words)
    config = composed([o.input_line for o in parsed if not o.is_sweep_override()])
    if not span.startswith(BUILT):
        return
    job = make_job(config, tmp_path)
    assert isinstance(job, Job)
    assert isinstance(job.sparsity, SparsityCallback) != ("sparsity=none" in words)
    assert isinstance(job.distillation, Objective)
    assert isinstance(job.trainer(logger=False, default_root_dir=tmp_path), Trainer)


def test_a_method_file_names_functions_of_ones_own(composed, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def score(weight): return weight.abs()\n"
        "def cosine(student, teacher, batch):\n"
        "    ours, theirs = student.hidden_states[-1], teacher.hidden_states[-1]\n"
        "    return (1 - (ours * theirs).sum(-1) / ours.norm(dim=-1) / theirs.norm(dim=-1)).mean()"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    job = make_job(composed(["experiment=mine"]), tmp_path)
    assert job.sparsity.criterion(torch.tensor([-2.0])).item() == 2.0
    same = Activations(
        logits=torch.randn(2, 2),
        hidden_states=(torch.randn(2, 4, 6),) * 3,
        attention_scores=(torch.randn(2, 1, 4, 4),) * 2,
    )
    _, losses = job.distillation(same, same, {"attention_mask": torch.ones(2, 4)})
    assert losses["cosine"].item() == pytest.approx(0.0, abs=1e-6)
    assert losses.keys() > {"cosine", "soft_targets"}


def test_the_task_file_of_a_classification_task_reads_rows(composed, tmp_path):
    assert len(block("docs/tasks.md", "name: reviews").splitlines()) <= 9
    config = composed(["task=reviews", "model=distilbert"])
    task = instantiate(config.task, _convert_="all")
    assert isinstance(task, Task)
    for split, stars in (("train", [5, 1, 3]), ("validation", [2, 4])):
        rows = "".join(f"fox,the old fox,{star}\n" for star in stars)
        (tmp_path / f"{split}.csv").write_text(f"title,body,stars\n{rows}")
    tokenizer = PretrainedEncoder(path=make_model(str(tmp_path))).tokenizer()
    data = load_data(replace(task, path=str(tmp_path)), tokenizer, tmp_path / "cache")
    assert [list(split["labels"]) for split in data.splits.values()] == [[4, 0, 2], [1, 3]]


def test_the_task_file_of_a_regression_task_reads_numbers(composed, tmp_path):
    config = composed(["task=prices", "model=distilbert"])
    task = instantiate(config.task, _convert_="all")
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("description,price\nthe old fox,2.5\nfox,1\n")
    tokenizer = PretrainedEncoder(path=make_model(str(tmp_path))).tokenizer()
    data = load_data(replace(task, path=str(tmp_path)), tokenizer, tmp_path / "cache")
    assert [list(split["labels"]) for split in data.splits.values()] == [[2.5, 1.0]] * 2


def test_the_ci_workflow_runs_the_smoke_target():
    steps = yaml.safe_load(block("docs/ci.md", "runs-on"))["jobs"]["smoke"]["steps"]
    assert steps[-1] == {"run": "make smoke"}


def test_the_table_of_option_groups_lists_every_option():
    (table,) = [t for t in pages.tables("docs/overrides.md") if t[0][0] == "group"]
    for cell, options, *_ in table[1:]:
        group = cell.strip("`").removesuffix("=")
        files = {path.stem for path in (pages.ROOT / "conf" / group).glob("*.yaml")}
        listed = re.sub(r" \([^)]*\)", "", options).split(", ")
        assert set(listed) == files, group


def test_the_table_of_choices_names_every_option_and_what_it_makes():
    (table,) = [t for t in pages.tables("docs/plugin.md") if t[0][0] == "in Python"]
    made = {}
    for cells in table[1:]:
        python, options = (re.findall(r"`([^`]+)`", cell) for cell in cells[:2])
        made |= dict.fromkeys(options or python, python)
    groups = ("ramp", "criterion", "allocation", "granularity")
    files = [path for group in groups for path in pages.ROOT.glob(f"conf/sparsity/{group}/*.yaml")]
    files = [path for path in files if path.stem != "sparsebert_official"]
    assert made.keys() == {path.stem for path in files}
    for path in files:
        content = yaml.safe_load(path.read_text())
        name = content.get("path", content.get("_target_"))  # of a function, or a class
        assert name is None or name.rpartition(".")[2] in made[path.stem], path


def test_the_table_of_arguments_has_the_callbacks_defaults():
    (table,) = [t for t in pages.tables("docs/plugin.md") if t[0][:2] == ["argument", "default"]]
    parameters = inspect.signature(SparsityCallback).parameters
    listed = {}
    for arguments, defaults, *_ in table[1:]:
        names = re.findall(r"`([^`]+)`", arguments)
        values = defaults.replace("`", "").split(", ")
        listed |= dict(zip(names, values * len(names) if len(values) == 1 else values, strict=True))
    rest = {"scope", "submodule", "keep_zeros", "allow_empty", "name"}
    assert listed.keys() == parameters.keys() - rest
    for name, value in listed.items():
        default = parameters[name].default
        if value == "none":
            assert not default
        else:
            assert value == getattr(default, "__name__", str(default)), name


@pytest.mark.parametrize("page", pages.PAGES)
def test_relative_links_and_anchors_resolve(page):
    folder = (pages.ROOT / page).parent
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else pages.ROOT / page
        assert file.exists(), target
        name = str(file.relative_to(pages.ROOT))
        if anchor:
            assert anchor in pages.anchors(name), target


def test_every_page_is_linked_from_the_readme_or_another_page():
    linked = {
        str(((pages.ROOT / page).parent / target.partition("#")[0]).resolve())
        for page in pages.PAGES
        for target in pages.links(page)
    }
    for page in pages.PAGES:
        assert page == "README.md" or str(pages.ROOT / page) in linked, page


def test_python_block_of_the_page_on_running_runs_a_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KD_PRUNE_CACHE", str(tmp_path / "cache"))
    (code,) = pages.blocks("docs/running.md", "python")
    short = '"trainer.max_epochs=1", "teacher.max_epochs=1", "trainer.limit_train_batches=10"'
    assert '"trainer.max_epochs=1"' in code
    names = {}
    exec(code.replace('"trainer.max_epochs=1"', short), names)  # noqa: S102 - our own page
    assert names["result"].student.sparsity == pytest.approx(0.9, abs=1e-3)
    assert Path("outputs/notebook/student").is_dir()


@pytest.mark.parametrize(
    "page", ["README.md", "docs/plugin.md", "docs/shipping.md", "docs/export.md"]
)
def test_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    tiny = make_model(str(tmp_path / "cache"))
    student = Path("outputs/run/student")
    AutoModelForSequenceClassification.from_pretrained(tiny).save_pretrained(student)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(student)
    export(Source.find(str(student)), Export(form="packed"), student.with_name("student-packed"))
    names = {}
    for code in pages.blocks(page, "python"):
        exec(code, names)  # noqa: S102 - our own page
    assert isinstance(names.get("callback", SparsityCallback()), SparsityCallback)
    if page in ("docs/shipping.md", "docs/export.md"):
        assert names["tokenizer"]
        assert names["model"].num_parameters() > 0
    else:
        assert names["trainer"].max_epochs == 10
