"""Hypothesis draws the same examples every time: a red test is red for everybody."""

from hypothesis import settings

settings.register_profile("kd_prune", derandomize=True, deadline=None)
settings.load_profile("kd_prune")
