"""``python -m kd_prune``: the same as ``kd-prune``."""

from kd_prune.cli.main import main

if __name__ == "__main__":
    main()
