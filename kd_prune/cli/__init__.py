"""Commands of ``kd-prune``: ``train``, ``eval``, ``sparsity``, ``summary``, ``export`` and more.

`main` reads the command line and imports the module of the named command; nothing before that
imports torch or Hydra.
"""
