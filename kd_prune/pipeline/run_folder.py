"""Run folder: the results of a run, and the removal of an earlier run's results."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from kd_prune.pipeline.context import GivenModel
from kd_prune.pipeline.job import Job
from kd_prune.pipeline.messages import say
from kd_prune.pipeline.milestones import milestone_folder, saved_milestones
from kd_prune.results import EXPORT_FILE

RESULTS = ("result.json", "sparsity.csv", "curves.png", "metrics.csv", "student")
"""Results besides milestones and checkpoint; first the file that marks a run as finished."""


@rank_zero_only
def clear_results(job: Job, checkpoint: Mapping[str, Any] | None) -> None:
    """Remove the results of an earlier run from the run folder, as the new fit begins.

    Exports that lie beside a student of that run are removed with it, and named in a line. Nothing
    is removed if the run resumes a checkpoint in that folder. Files that the run reads
    (`teacher.path` may be the earlier student) and milestones copied from another folder are kept.

    Args:
        job: The job.
        checkpoint: Content of the checkpoint that is resumed; None: the run begins from the start.
    """
    out = job.out.resolve()
    chain = job.chain().values()
    models = {path for stage in chain for path in (stage.path, *stage.references) if path}
    used = [job.model.path, *(stage.task.path for stage in chain if stage.task)]
    used += [GivenModel.of(path, "").path for path in models]  # of a run folder, its student
    kept = [Path(path).expanduser().resolve() for path in used]
    if checkpoint and job.ckpt_path:
        file = Path(job.ckpt_path).expanduser().resolve()
        if file.is_relative_to(out):
            return
        kept.append(file)
        kept += [milestone_folder(out, sparsity) for sparsity in saved_milestones(checkpoint)]
    earlier = [path for path in (out / "milestones").glob("*") if _is_number(path.name)]
    exported = [path for path in exports(out) if not _holds(path, kept)]
    if exported:
        names = ", ".join(str(path.relative_to(out)) for path in exported)
        say(f"Removed with the earlier student: {names}")
    for path in (*(out / name for name in RESULTS), *earlier, *exported):
        if _holds(path, kept):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: it has other files too
        (out / "milestones").rmdir()


def exports(out: Path) -> list[Path]:
    """Return the exported folders beside the students of a run, such as ``student-packed``."""
    milestones = (out / "milestones").glob("*-*")
    beside = [path for path in milestones if _is_number(path.name.partition("-")[0])]
    found = (*out.glob("student-*"), *beside)
    return sorted(path for path in found if (path / EXPORT_FILE).is_file())


def _holds(folder: Path, paths: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for path in paths)


def _is_number(name: str) -> bool:
    with suppress(ValueError):
        return math.isfinite(float(name))
    return False
