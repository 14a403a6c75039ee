"""MedianStoppingRule on studies of its own; whole searches are tested with the command."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from kd_prune.errors import ConfigError
from kd_prune.sweep.search import OptunaSweeper, quote_value
from kd_prune.sweep.study import STUDY, MedianStoppingRule, open_storage

optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")


def make_study(tmp_path):
    storage = str(tmp_path / "study.log")
    study = optuna.create_study(
        study_name=STUDY, storage=open_storage(storage), load_if_exists=True, direction="maximize"
    )
    return study, storage


def rule_for(trial, storage, startup=1):
    return MedianStoppingRule(storage, trial.number, final=0.9, startup=startup)


def test_median_stopping_rule_counts_values_at_the_final_sparsity_only(tmp_path):
    study, storage = make_study(tmp_path)
    for _ in range(3):
        good = study.ask()
        for percent in (25, 50, 75, 100):
            good.report(0.8, percent)
        study.tell(good, 0.8)
    rule = rule_for(study.ask(), storage)
    assert rule(25, 0.5, 0.1) is None  # worse, but on the ramp
    assert rule(50, 0.8995, 0.81) is None
    assert study.trials[-1].intermediate_values == {50: 0.81}
    behind = rule_for(study.ask(), storage)
    assert "0.7000 after 75 % of the run is worse than the median" in behind(75, 0.9, 0.7)
    assert rule_for(study.ask(), storage)(100, 0.9, 0.7) is None  # it is finished anyway


def test_median_stopping_rule_needs_three_other_trials(tmp_path):
    study, storage = make_study(tmp_path)
    for percents in [(50, 75), (75,), (75,), (100,)]:
        trial = study.ask()
        for percent in percents:
            trial.report(0.8, percent)
        study.tell(trial, 0.8)
    rule = rule_for(study.ask(), storage, startup=4)
    assert rule(50, 0.9, 0.1) is None
    assert rule(75, 0.9, 0.1)


def test_median_stopping_rule_of_a_resumed_trial_reports_nothing_twice(tmp_path, recwarn):
    study, storage = make_study(tmp_path)
    trial = study.ask()
    assert rule_for(trial, storage)(50, 0.9, 0.7) is None
    resumed = rule_for(trial, storage)
    assert resumed(50, 0.9, 0.6) is None
    assert resumed(75, 0.9, 0.8) is None
    assert study.trials[0].intermediate_values == {50: 0.7, 75: 0.8}


@pytest.mark.parametrize("name", ["n_trials", "n_jobs"])
def test_optuna_sweeper_without_trials_is_refused(name):
    settings = {"n_trials": 1, "n_jobs": 1, name: 0}
    with pytest.raises(ConfigError, match=f"hydra.sweeper.{name}=0: expected a number above 0"):
        OptunaSweeper({}, direction="maximize", seed=0, startup=0, storage=None, **settings)


@pytest.mark.parametrize(
    "folder", ["/home/o'brien/a", "C:\\a\\b", "/a b/ü,{}[]=$", 'a"b', "a\\", 'a\\"b\\\\']
)
def test_storage_of_any_name_is_read_as_it_is(folder):
    override = OverridesParser.create().parse_override(f"search.storage={quote_value(folder)}")
    assert override.value() == folder
