"""What every test relies on: no hub, threads that sleep when idle, the same examples every time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does, before torch is loaded

from hypothesis import settings

settings.register_profile("kd_prune", derandomize=True, deadline=None)
settings.load_profile("kd_prune")
