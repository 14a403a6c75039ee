"""Prune while distilling: PyTorch Lightning parts for sparse BERT encoders.

The public names live in `kd_prune.pruning` and `kd_prune.distillation` (torch only),
`kd_prune.lit` (Lightning) and `kd_prune.hf` (transformers, datasets).
"""

__version__ = "0.1.0"
