"""Models of a stage: the initial student with its masks, and the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from kd_prune import hf
from kd_prune.errors import ConfigError, key_prefix
from kd_prune.hf.changes import new_model, with_layers
from kd_prune.pipeline.context import Context, GivenModel
from kd_prune.pipeline.stage import PRETRAINED, ChainStage
from kd_prune.pruning import Scope


def initial_model(
    context: Context, stage: ChainStage, as_stage: ChainStage | None = None
) -> PreTrainedModel:
    """Load the initial model of a stage's fit, with the stage's seed, and apply its masks.

    If the stage begins with the outcome of a stage that is not finished yet, the initial model of
    the latter is used instead: the shapes are the same, which is enough for checks before training.
    For the same reason there are no masks of a stage that is not finished yet.

    Args:
        context: The run.
        stage: The stage.
        as_stage: Stage whose head the model gets; None: `stage`.

    Raises:
        ConfigError: The model cannot be loaded, does not allow the stage's change of shape, or
            does not fit the masks.
    """
    model = unmasked_model(context, stage, as_stage)
    apply_masks(context, stage, model)
    return model


def unmasked_model(
    context: Context, stage: ChainStage, as_stage: ChainStage | None = None
) -> PreTrainedModel:
    """Load the initial model of a stage's fit, as `initial_model` does, without masks."""
    head = as_stage or stage
    kind, num_outputs = head.task.kind, context.inputs[head.name].data.num_outputs
    L.seed_everything(stage.seed, verbose=False)
    given = context.given_source(stage)
    labels = context.inputs[head.name].data.labels
    if given is None and stage.init in context.chain and stage.init not in context.outcomes:
        model = initial_model(context, context.chain[stage.init], head)
        if not stage.encoder_change.new_weights:
            theirs = context.inputs[stage.init].data
            if theirs.num_outputs == num_outputs:
                check_class_order(f"{stage.key}.init", stage.init, theirs.labels, labels)
        return change_encoder(model, stage, kind.auto_model)
    if stage.init in context.outcomes:
        source, key = context.outcomes[stage.init].path, f"{stage.key}.init"
    elif given:
        source, key = given.path, given.key
    else:
        source, key = PRETRAINED, "model.path"
    encoder = context.encoder(source)
    model = encoder.load(
        kind=kind,
        num_outputs=num_outputs,
        key=key,
        change=stage.encoder_change,
        change_key=stage.key,
    )
    if not stage.encoder_change.new_weights and hf.has_head(model.config, kind):
        check_class_order(key, encoder.path, label_names(model.config), labels)
    return model


@torch.no_grad()
def apply_masks(context: Context, stage: ChainStage, model: PreTrainedModel) -> None:
    """Set the weights in scope to zero that are zero in the model that `Stage.masks_from` names.

    Raises:
        ConfigError: That model cannot be loaded, has no zeros in scope, or has tensors of other
            shapes.
    """
    given, key = context.given_masks(stage), f"{stage.key}.masks_from"
    if stage.masks_from in context.outcomes:
        path = context.outcomes[stage.masks_from].path
    elif given:
        path, key = given.path, given.key
    else:
        return  # no masks, or a stage that is not finished
    # Its head is not used, and may be drawn at random.
    with context.stage_names(), torch.random.fork_rng(devices=[]):
        other = context.encoder(path).load(
            kind=stage.task.kind,
            num_outputs=context.inputs[stage.name].data.num_outputs,
            key=key,
        )
    theirs, zeros = dict(other.named_parameters()), 0
    for name, weight in stage_scope(context, stage, model).select(model).items():
        if name not in theirs or theirs[name].shape != weight.shape:
            found = tuple(theirs[name].shape) if name in theirs else "missing there"
            raise ConfigError(
                key,
                stage.masks_from,
                f"its {name} does not fit one of shape {tuple(weight.shape)} ({found})",
                "take a model with the same layers and widths",
            )
        pruned = theirs[name] == 0
        zeros += int(pruned.sum())
        weight.masked_fill_(pruned, 0.0)
    if not zeros:
        raise ConfigError(key, stage.masks_from, "it has no zeros among the weights in scope")


def change_encoder(model: PreTrainedModel, stage: ChainStage, auto_model: Any) -> PreTrainedModel:
    """Return the model with a stage's layers and width.

    Raises:
        ConfigError: The model does not allow them.
    """
    change = stage.encoder_change
    with key_prefix(stage.key):
        if change.new_weights:
            return new_model(auto_model, change.config(model.config))
        return model if change.layers is None else with_layers(model, change, auto_model)


def teacher_model(context: Context, stage: ChainStage) -> PreTrainedModel | None:
    """Load the teacher of a stage; before it is trained, a model of the same shape.

    Raises:
        ConfigError: The teacher cannot be loaded, was fine-tuned on another task, or has no head
            although the stage learns from its outputs.
    """
    if stage.teacher is None:
        return None
    data, kind, key = context.inputs[stage.name].data, stage.task.kind, f"{stage.key}.teacher"
    if given := context.given_teacher(stage):
        return load_fine_tuned(given, stage.task, data)
    if stage.teacher == PRETRAINED:
        if stage.learns_outputs:
            config = context.job.model.fine_tuned_config(kind, key)
            check_class_order(key, context.job.model.path, label_names(config), data.labels)
        L.seed_everything(stage.seed, verbose=False)
        return context.job.model.load(
            kind=kind, num_outputs=data.num_outputs, head=stage.learns_outputs, key=key
        )
    check_same_head(context, stage, context.chain[stage.teacher])
    if stage.teacher not in context.outcomes:
        return initial_model(context, context.chain[stage.teacher], stage)
    L.seed_everything(stage.seed, verbose=False)  # a missing head, not used, is random
    encoder = hf.PretrainedEncoder(path=context.outcomes[stage.teacher].path)
    return encoder.load(kind=kind, num_outputs=data.num_outputs, head=stage.learns_outputs, key=key)


def check_same_head(context: Context, stage: ChainStage, teacher: ChainStage) -> None:
    """Refuse a teacher that is fitted with another head, if the stage learns from its outputs.

    Raises:
        ConfigError: The heads differ.
    """
    ours, theirs = (
        (one.task.kind.auto_model, context.inputs[one.name].data.num_outputs)
        for one in (stage, teacher)
    )
    if stage.learns_outputs and ours != theirs:
        raise ConfigError(
            f"{stage.key}.teacher",
            teacher.name,
            f"it is fitted on {teacher.task.name}, so its head is not one for {stage.task.name}",
            "name a stage of the same task, or set the weights of terms over outputs to 0",
        )
    if stage.learns_outputs:
        names = (context.inputs[one.name].data.labels for one in (teacher, stage))
        check_class_order(f"{stage.key}.teacher", teacher.name, *names)


def load_fine_tuned(given: GivenModel, task: hf.Task, data: hf.TaskData) -> PreTrainedModel:
    """Load a model that was fine-tuned on the task.

    Raises:
        ConfigError: The model cannot be read, has no head for the task, or has other labels.
    """
    encoder = hf.PretrainedEncoder(path=given.path)
    config = encoder.fine_tuned_config(task.kind, given.key)
    if task.kind.uses_num_labels and config.num_labels != data.num_outputs:
        raise ConfigError(
            given.key,
            given.path,
            f"the model has {config.num_labels} labels, the task {data.num_outputs}",
            "take one that was fine-tuned on this task",
        )
    check_class_order(given.key, given.path, label_names(config), data.labels)
    return encoder.load(kind=task.kind, num_outputs=data.num_outputs, head=True, key=given.key)


def label_names(config: PreTrainedConfig) -> list[str]:
    """Return the class names of a model's head, in the order of its outputs."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def check_class_order(key: str, model: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Refuse a model whose head has the task's classes in another order.

    Args:
        key: Setting that named the model.
        model: Its value.
        theirs: Class names of the model.
        ours: Class names of the task. A name that only one of them has says nothing.

    Raises:
        ConfigError: A name that both have stands at different places.
    """
    places = [
        {name.strip().casefold(): place for place, name in reversed([*enumerate(names)])}
        for names in (theirs, ours)
    ]
    if any(places[0][name] != places[1][name] for name in places[0].keys() & places[1].keys()):
        raise ConfigError(
            key,
            model,
            f"the model's labels are {list(theirs)[:5]} in this order, the task's {list(ours)[:5]}",
            "set task.labels to the model's",
        )


def stage_scope(context: Context, stage: ChainStage, student: PreTrainedModel) -> Scope:
    """Return the scope of pruning, in parameter names of a stage's student.

    Raises:
        ConfigError: A pattern matches nothing.
    """
    sparsity, of_model = stage.sparsity, context.job.model.scope
    own = sparsity.scope if sparsity else None
    scope = own or of_model or hf.encoder_scope(student)
    with key_prefix(stage.setting_key("sparsity") if own else "model"):
        scope.select(student)
    return scope
