"""Where Hydra looks for sweepers, and nowhere else; ours is `kd_prune.sweep.search`."""

from kd_prune.sweep import search


class OptunaSweeper(search.OptunaSweeper):
    """See `kd_prune.sweep.search.OptunaSweeper`."""
