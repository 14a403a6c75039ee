"""What every test relies on: no hub, one thread, the same examples every time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# gpu: where this is set, trainers of the tests run there (what needs one by nature is test_cuda).
os.environ.setdefault("KD_PRUNE_TEST_ACCELERATOR", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"  # sums in one order, here and in the processes tests start

from hypothesis import settings

settings.register_profile("kd_prune", derandomize=True, deadline=None)
settings.load_profile("kd_prune")
