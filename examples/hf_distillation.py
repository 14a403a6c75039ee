"""A Hugging Face encoder in your own LightningModule, pruned while your own loss distils it.

python examples/hf_distillation.py                       (tiny random models, no download)
python examples/hf_distillation.py <folder or hub id of a fine-tuned classifier>
"""

import sys
from copy import deepcopy

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from kd_prune.lit import SparsityCallback
from kd_prune.pruning import Scope


class Distilled(L.LightningModule):
    """Your own module with your own distillation loss."""

    def __init__(self, teacher: PreTrainedModel) -> None:
        super().__init__()
        self.student = deepcopy(teacher).train()
        # The teacher is frozen, and the callback never prunes frozen parameters, with or without a
        # scope. As a registered submodule the teacher is part of checkpoints.
        self.teacher = teacher.eval().requires_grad_(False)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        (ids,) = batch
        ours = self.student(input_ids=ids).logits.log_softmax(-1)
        theirs = self.teacher(input_ids=ids).logits.log_softmax(-1)
        return nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.student.parameters(), lr=1e-3)


def main(path: str | None = None, epochs: int = 3) -> tuple[float, Distilled]:
    """Distil and prune; returns the sparsity counted over the student's encoder."""
    L.seed_everything(0, verbose=False)
    if path:
        teacher = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    else:
        teacher = AutoModelForSequenceClassification.from_config(
            BertConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                vocab_size=100,
            )
        )
    ids = torch.randint(5, teacher.config.vocab_size, (256, 16))
    pruning = SparsityCallback(
        final=0.95,  # exactly this share of every matrix in scope
        end=0.7,  # reached after 70 % of the optimizer steps
        scope=Scope(include=["student.*encoder.layer.*.weight"]),  # the encoder, not its pooler
    )
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=[pruning],
    )  # fmt: skip
    module = Distilled(teacher)
    trainer.fit(module, DataLoader(TensorDataset(ids), batch_size=16))
    # module.student.save_pretrained(…) gives a plain folder that from_pretrained reads anywhere.
    return pruning.pruner.sparsity, module


if __name__ == "__main__":
    sparsity, _ = main(*sys.argv[1:2])
    print(f"sparsity of the student's encoder: {sparsity:.4f}")
