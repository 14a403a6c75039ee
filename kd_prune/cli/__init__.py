"""Commands: ``kd-prune train``, ``eval``, ``sparsity`` and ``summary``.

`main` reads the command line and imports the module of the named command; nothing before that
imports torch or Hydra.
"""
