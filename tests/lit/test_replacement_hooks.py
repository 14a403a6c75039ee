"""LayerReplacement: attention scores of layers that the predecessor runs are the predecessor's."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch

from kd_prune import hf
from kd_prune.hf.tiny import make_model
from kd_prune.lit import LayerReplacement
from kd_prune.metrics import metric_collection

from .toy import make_module, make_trainer

REQUIRED = frozenset({"hidden_states", "attention_scores"})


class Compare(L.Callback):
    """After every batch, which layers' scores are the predecessor's, given the same input."""

    def __init__(self, predecessor, replacement):
        self.predecessor, self.replacement = predecessor, replacement
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        ours = hf.forward(module.student, inputs, REQUIRED)
        theirs = hf.forward(self.predecessor.to(module.device), inputs, REQUIRED)
        same = torch.allclose(ours.attention_scores[0], theirs.attention_scores[0], atol=1e-5)
        self.seen.append((len(ours.attention_scores), same, self.replacement._takes_part[0]))


@pytest.mark.parametrize("layers", [2, 1])
def test_attention_scores_are_those_of_the_layers_that_run(tmp_path, layers):
    path = make_model(str(tmp_path), layers=2, hidden_size=16, heads=2)
    change = hf.EncoderChange(layers=layers)
    encoder, kind = hf.PretrainedEncoder(path=path), hf.Classification()
    student, teacher = (
        encoder.load(kind=kind, num_outputs=3, change=one) for one in (change, hf.EncoderChange())
    )
    for model in (student, teacher):
        hf.enable_attention_scores(model)
        hf.set_dropout(model, 0.0)
    with torch.no_grad():
        student.base_model.encoder.layer[0].attention.self.query.weight.mul_(3.0)
    batch = {"input_ids": torch.randint(5, 20, (4, 6)), "attention_mask": torch.ones(4, 6).long()}
    hf.forward(teacher, batch, REQUIRED)  # which leaves hooks on the layers that are copied
    replacement = LayerReplacement(initial=0.5, end=1.0, predecessor=teacher)
    compare = Compare(teacher, replacement)
    module = make_module(
        student=student.train(),
        teacher=teacher,
        forward=hf.forward,
        optimizer=hf.AdamWWithSchedule(rates={"*": 0.0}),  # the embeddings stay the teacher's
        metrics=metric_collection(["accuracy"], 3),
    )
    rows = [{name: value[0] for name, value in batch.items()} | {"labels": torch.tensor(1)}] * 24
    trainer = make_trainer(tmp_path, replacement, compare, max_epochs=1)
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    trainer.fit(module, loader, loader)
    assert {part for _, _, part in compare.seen} == {True, False}
    for count, same, takes_part in compare.seen:
        assert count == layers
        if layers == 2:
            assert same == (not takes_part)
