"""Folders of runs and sweeps, as the configuration names them."""

from __future__ import annotations

from hydra import compose


def folder(*overrides: str) -> str:
    return compose("train", overrides=list(overrides), return_hydra_config=True).hydra.sweep.subdir


def test_jobs_of_a_sweep_have_folders_of_their_own():
    """One folder per result: what changes it changes the name, what does not leaves it."""
    asked = [[], ["seed=3"], ["sparsity.final=0.9"], ["optimizer.lr=1e-3"], ["distillation=none"]]
    folders = [folder(*overrides) for overrides in asked]
    assert len(set(folders)) == len(asked)
    assert [name.rsplit("-", 1)[0] for name in folders[1:3]] == [
        "tiny-sparsebert-s0.95-seed3",
        "tiny-sparsebert-s0.9-seed0",
    ]
    assert folder("sparsity=none").startswith("tiny-sparsebert-dense-seed0-")
    dense = folder("experiment=poster/compressbert_downstream", "sparsity=none")
    assert dense.startswith("tiny-none-dense-seed0-")  # its sparsity.final has no effect
    assert folder("sparsity=fixed").startswith("tiny-sparsebert-as_is-seed0-")
    for same in ("cache_dir=x", "logger=tensorboard", "sweep.retry_failed=true", "sweep.name=x"):
        assert folder(same) == folders[0]
    # One that cannot be put together has a folder too, to hold the reason.
    assert folder("task.path=${nowhere}") not in folders


def test_runs_that_start_together_have_folders_of_their_own():
    folders = {compose("train", return_hydra_config=True).hydra.run.dir for _ in range(3)}
    assert len(folders) == 3


def test_a_sweep_is_found_by_its_command():
    def sweep(*overrides: str) -> str:
        config = compose("train", overrides=list(overrides), return_hydra_config=True)
        return config.hydra.sweep.dir

    assert sweep("seed=1", "optimizer.lr=1") == sweep("optimizer.lr=1", "seed=1")
    assert sweep("seed=1") == sweep("seed=1", "sweep.retry_failed=true") != sweep("seed=2")
    assert sweep("sweep.name=mine", "seed=1") == sweep("sweep.name=mine") == "outputs/sweeps/mine"
