"""Folders that processes share, or do not."""

import dataclasses

import pytest

from kd_prune.errors import ConfigError
from kd_prune.pipeline import processes
from kd_prune.pipeline.context import Context


@pytest.fixture
def contexts(make_job, tmp_path, monkeypatch):
    """What the first and another process of a launch know, the other with folders of its own."""
    monkeypatch.setattr(processes, "SHARED_SECONDS", 0.2)
    monkeypatch.setenv("MASTER_PORT", "1234")

    def make(machine, *, first):
        cache, out = tmp_path / machine / "cache", tmp_path / machine / "run"
        for folder in (cache, out):
            folder.mkdir(parents=True, exist_ok=True)
        job = dataclasses.replace(make_job(out), out=out)
        return Context(job, cache, job.chain(), first)

    return make


def test_check_shared_finds_what_the_first_process_left(contexts):
    processes.check_shared(contexts("disk", first=True))
    processes.check_shared(contexts("disk", first=False))


def test_check_shared_refuses_a_folder_of_another_machine(contexts):
    processes.check_shared(contexts("disk", first=True))
    with pytest.raises(ConfigError, match=r"^hydra\.run\.dir=.*: the job's first process left not"):
        processes.check_shared(contexts("other", first=False))


def test_check_shared_takes_no_file_of_an_earlier_launch(contexts, monkeypatch):
    processes.check_shared(contexts("disk", first=True))
    monkeypatch.setenv("MASTER_PORT", "4321")
    with pytest.raises(ConfigError, match=r"name a folder that all machines share"):
        processes.check_shared(contexts("disk", first=False))
