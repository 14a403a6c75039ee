"""``hparams_search=optuna``: a study that goes on, prunes, and never counts a failure."""

from __future__ import annotations

import json
import sys

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from kd_prune.sweep.study import STUDY, open_storage

from .script import SMALL, metrics_of

optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
States = optuna.trial.TrialState


@pytest.fixture
def search(call, tmp_path):
    """Run a search of so many trials; returns exit code, output and the study."""
    folder = tmp_path / "search"

    def run(trials: int, *overrides: str):
        code, out, err = call(
            "-m",
            "hparams_search=optuna",
            *SMALL,
            f"hydra.sweeper.n_trials={trials}",
            "hydra.sweeper.startup=2",
            f"hydra.sweep.dir={folder}",
            *overrides,
        )
        storage = str(folder / "study.log")
        study = optuna.load_study(study_name=STUDY, storage=open_storage(storage))
        return code, out + err, study

    run.folder = folder
    return run


def states_of_runs(folder):
    files = folder.glob("*/status.json")
    return sorted(json.loads(file.read_text())["state"] for file in files)


def test_a_search_and_its_best(search):
    code, said, study = search(3, "optimizer.lr=interval(1e-3,4e-3)", "optimizer.warmup=0.05")
    assert code == 0, said
    assert [trial.state for trial in study.trials] == [States.COMPLETE] * 3
    for trial in study.trials:
        assert 1e-3 <= trial.params["optimizer.lr"] <= 4e-3  # the command line's bounds
        assert trial.params.keys() == {"optimizer.lr", "sparsity.end"}  # warm-up was fixed
    results = [json.loads(f.read_text()) for f in search.folder.glob("*/result.json")]
    values = [metrics_of(result)["accuracy"] for result in results]
    assert sorted(trial.value for trial in study.trials) == sorted(values)
    assert all(result["config"]["optimizer"]["warmup"] == 0.05 for result in results)
    best = OmegaConf.load(search.folder / "best.yaml")
    assert best.value == max(values)
    pasted = " ".join(f"{key}={value}" for key, value in best.params.items())
    assert pasted in said.splitlines()
    assert (search.folder / "report.html").is_file()


@pytest.mark.slow
def test_what_a_kill_left_running_comes_first_and_nothing_is_made_again(search):
    search(2)
    before = {f: f.stat().st_mtime_ns for f in search.folder.glob("*/result.json")}
    storage = open_storage(str(search.folder / "study.log"))
    study = optuna.load_study(study_name=STUDY, storage=storage)
    left = study.ask(study.trials[0].distributions)  # as a killed search leaves it
    _, _, study = search(4)
    assert [trial.state for trial in study.trials] == [States.COMPLETE] * 4
    assert study.trials[left.number].params == left.params
    assert len({str(trial.params) for trial in study.trials}) == 4  # nothing is drawn again
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert len(states_of_runs(search.folder)) == 4


def test_a_trial_that_was_half_drawn_when_it_was_killed_is_none(search):
    search(1)
    storage = open_storage(str(search.folder / "study.log"))
    study = optuna.load_study(study_name=STUDY, storage=storage)
    half = study.ask({"optimizer.lr": study.trials[0].distributions["optimizer.lr"]})
    _, _, study = search(3)
    assert study.trials[half.number].state == States.FAIL
    assert len(states_of_runs(search.folder)) == 2  # it never was a job


def test_trials_with_the_same_settings_are_one_job(search):
    fixed = ("optimizer.lr=1e-3", "optimizer.warmup=0.05", "sparsity.end=choice(0.5)")
    code, said, study = search(3, *fixed, "hydra.sweeper.n_jobs=3")
    assert code == 0, said
    assert [trial.state for trial in study.trials] == [States.COMPLETE] * 3
    assert len({trial.value for trial in study.trials}) == 1
    assert states_of_runs(search.folder) == ["finished"]


@pytest.mark.parametrize(
    "override", ["sparsity.final=0.5,0.9", "seed=1,2", "task=mrpc,stsb", "++seed=1,2"]
)
def test_a_search_has_one_task_seed_and_target(call, tmp_path, override):
    code, _, err = call("-m", "hparams_search=optuna", override, f"hydra.sweep.dir={tmp_path}")
    key = override.lstrip("+").partition("=")[0]
    assert code == 1
    assert err.strip().startswith(f"error: {override}: a search is for one {key}; give one value")


def test_a_search_goes_on_with_the_same_settings_only(search):
    search(2, "sparsity.final=0.5")
    before = (search.folder / "best.yaml").read_text()
    code, said, study = search(3, "sparsity.final=0.9")
    assert code == 1
    assert "error: sparsity.final=0.9: the search in " in said
    assert "was begun with sparsity.final=0.5, so its values cannot be compared" in said
    assert len(study.trials) == 2
    assert (search.folder / "best.yaml").read_text() == before


def test_a_trial_that_fails_is_no_value(search):
    code, said, study = search(2, "optimizer.lr=1e30")
    assert code == 1
    assert [trial.state for trial in study.trials] == [States.FAIL] * 2
    assert states_of_runs(search.folder) == ["failed"] * 2
    assert "no trial was finished" in said
    assert not (search.folder / "best.yaml").exists()
    _, _, study = search(2, "optimizer.lr=1e30")
    assert len(study.trials) == 2


def test_metric_that_is_better_if_lower_is_minimized(search):
    given = ["task=tiny_words", "task.monitor=perplexity", "optimizer.lr=choice(1e-3,1e-5)"]
    code, said, study = search(2, *given, "optimizer.warmup=0.0", "sparsity.end=0.7")
    assert code == 0, said
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert OmegaConf.load(search.folder / "best.yaml").value == min(t.value for t in study.trials)


def test_failed_trials_are_tried_again_on_request(search):
    """What made them fail is over: they come first, once, and do not count twice."""
    search(1, "optimizer.lr=1e30")
    storage = open_storage(str(search.folder / "study.log"))
    failed = optuna.load_study(study_name=STUDY, storage=storage).trials[0]
    for _ in range(2):
        _, _, study = search(2, "optimizer.lr=1e-3", "sweep.retry_failed=true")
        states = [trial.state for trial in study.trials]
        assert states == [States.FAIL, States.COMPLETE, States.COMPLETE]
        assert study.trials[1].params == failed.params
        assert study.trials[2].params != failed.params


def test_a_trial_behind_the_median_is_stopped(search):
    """Students that learn nothing from the fourth trial on: it ends early, and is on record."""
    search(3, "optimizer.lr=1e-3")
    storage = open_storage(str(search.folder / "study.log"))
    study = optuna.load_study(study_name=STUDY, storage=storage)
    for _ in range(3):  # what others reached, out of reach
        trial = study.ask(study.trials[0].distributions)
        for percent in range(0, 101):
            trial.report(2.0, percent)
        study.tell(trial, 2.0)
    code, said, study = search(7, "optimizer.lr=1e-3")
    assert code == 0
    assert study.trials[-1].state == States.PRUNED
    assert "stopped" in states_of_runs(search.folder)
    assert "worse than the median of earlier trials" in said
    assert "1 stopped" in said


def test_without_optuna_one_line_says_what_to_install(call, tmp_path, monkeypatch):
    from kd_prune.sweep import search

    monkeypatch.setitem(sys.modules, "optuna", None)
    search.import_optuna.cache_clear()
    code, _, err = call("-m", "hparams_search=optuna", f"hydra.sweep.dir={tmp_path / 'x'}")
    search.import_optuna.cache_clear()
    assert code == 1
    assert err.strip() == (
        "error: hparams_search=optuna: Optuna is not installed; pip install '<clone>[optuna]'"
    )


def test_one_command_at_a_time_searches(search):
    _, _, before = search(1)
    with FileLock(search.folder / "search.lock"):
        code, said, study = search(2)
    assert code == 1
    assert "another process is searching here; for several trials at once" in said
    assert len(study.trials) == len(before.trials) == 1


def test_one_job_searches_nothing(call, tmp_path):
    code, _, stderr = call("hparams_search=optuna", *SMALL, f"hydra.run.dir={tmp_path}")
    assert code == 1
    assert stderr.strip() == "error: hparams_search=optuna: a search runs several jobs; add -m"


def test_impossible_numbers_are_refused(call, tmp_path):
    code, _, err = call("-m", "hparams_search=optuna", "hydra.sweeper.n_trials=0")
    assert code == 1
    assert err.strip().startswith("error: hydra.sweeper.n_trials=0")
