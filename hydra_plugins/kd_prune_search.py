"""Plugin file: Hydra looks for sweepers only here; the code is in `kd_prune.sweep.search`."""

from kd_prune.sweep import search


class OptunaSweeper(search.OptunaSweeper):
    """See `kd_prune.sweep.search.OptunaSweeper`."""
