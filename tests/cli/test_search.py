"""``hparams_search=optuna``: a study that goes on, prunes, and never counts a failure."""

from __future__ import annotations

import json
import sys

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from kd_prune.sweep.search import STUDY, TrialJudge, open_storage

from .script import SMALL

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
    values = [result["student"]["accuracy"] for result in results]
    assert sorted(trial.value for trial in study.trials) == sorted(values)
    assert all(result["config"]["optimizer"]["warmup"] == 0.05 for result in results)
    best = OmegaConf.load(search.folder / "best.yaml")
    assert best.value == max(values)
    pasted = " ".join(f"{key}={value}" for key, value in best.params.items())
    assert pasted in said.splitlines()
    assert (search.folder / "report.html").is_file()


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


def test_a_trial_that_fails_is_no_value(search):
    code, said, study = search(2, "optimizer.lr=1e30")
    assert code == 1
    assert [trial.state for trial in study.trials] == [States.FAIL] * 2
    assert states_of_runs(search.folder) == ["failed"] * 2
    assert "no trial was finished" in said
    assert not (search.folder / "best.yaml").exists()
    _, _, study = search(2, "optimizer.lr=1e30")
    assert len(study.trials) == 2
    _, _, study = search(2, "optimizer.lr=1e30", "sweep.retry_failed=true")
    assert [trial.user_attrs for trial in study.trials[2:]] == [{"retries": 0}, {"retries": 1}]
    assert [trial.params for trial in study.trials[2:]] == [t.params for t in study.trials[:2]]
    assert states_of_runs(search.folder) == ["failed"] * 2


def test_a_trial_behind_the_median_is_pruned(search):
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
    assert "pruned" in states_of_runs(search.folder)
    assert "below the median of earlier trials" in said
    assert "1 pruned" in said


def judge_of(tmp_path, **settings):
    storage = str(tmp_path / "study.log")
    study = optuna.create_study(
        study_name=STUDY, storage=open_storage(storage), load_if_exists=True, direction="maximize"
    )
    return study, lambda trial: TrialJudge(storage, trial.number, final=0.9, startup=1, **settings)


def test_values_count_at_the_final_sparsity_alone(tmp_path):
    study, judge_for = judge_of(tmp_path)
    for _ in range(3):
        good = study.ask()
        for percent in (25, 50, 75, 100):
            good.report(0.8, percent)
        study.tell(good, 0.8)
    trial = study.ask()
    judge = judge_for(trial)
    assert judge(25, 0.5, 0.1) is None  # worse, but on the ramp
    assert judge(50, 0.8995, 0.81) is None
    found = study.trials[-1]
    assert found.intermediate_values == {50: 0.81}
    trial = study.ask()
    assert "0.7000 after 75 % of the run is below the median" in judge_for(trial)(75, 0.9, 0.7)
    assert judge_for(study.ask())(100, 0.9, 0.7) is None  # it is done anyway


def test_fewer_than_three_others_end_nothing(tmp_path):
    storage = str(tmp_path / "study.log")
    study = optuna.create_study(
        study_name=STUDY, storage=open_storage(storage), direction="maximize"
    )
    for percents in [(50, 75), (75,), (75,), (100,)]:
        trial = study.ask()
        for percent in percents:
            trial.report(0.8, percent)
        study.tell(trial, 0.8)
    judge = TrialJudge(storage, study.ask().number, final=0.9, startup=4)
    assert judge(50, 0.9, 0.1) is None
    assert judge(75, 0.9, 0.1)


def test_a_resumed_trial_reports_nothing_twice(tmp_path, recwarn):
    study, judge_for = judge_of(tmp_path)
    trial = study.ask()
    assert judge_for(trial)(50, 0.9, 0.7) is None
    again = judge_for(trial)
    assert again(50, 0.9, 0.6) is None
    assert again(75, 0.9, 0.8) is None
    assert study.trials[0].intermediate_values == {50: 0.7, 75: 0.8}


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


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sparsity.final=0.5", "error: sparsity.final=0.5: the search in this folder is one with"),
        ("hydra.sweeper.direction=minimize", "hydra.sweeper.direction=minimize: the search in"),
        ("optimizer.warmup=0.1,0.2", "error: optimizer.warmup=Categorical"),
    ],
)
def test_another_search_is_not_mixed_with_one_that_is_there(search, override, says):
    search(1)
    code, said, study = search(2, override)
    assert code == 1
    assert says in said
    assert "give another sweep.name" in said
    assert [trial.state for trial in study.trials] == [States.COMPLETE]
    code, said, study = search(2, "cache_dir=" + str(search.folder.parent / "other"))
    assert code == 0, said
    assert len(study.trials) == 2


def test_one_job_searches_nothing(call, tmp_path):
    code, _, stderr = call("hparams_search=optuna", *SMALL, f"hydra.run.dir={tmp_path}")
    assert code == 1
    assert stderr.strip() == "error: hparams_search=optuna: one job searches nothing; say -m too"


def test_impossible_numbers_are_refused(call, tmp_path):
    code, _, err = call("-m", "hparams_search=optuna", "hydra.sweeper.n_trials=0")
    assert code == 1
    assert err.strip().startswith("error: hydra.sweeper.n_trials=0")
