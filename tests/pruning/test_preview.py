"""PruningPreview: totals and text."""

from kd_prune.pruning.chosen_scope import DefaultScope
from kd_prune.pruning.preview import PruningPreview, TensorPreview
from kd_prune.pruning.scope import Scope


def make_plan(**changes):
    tensors = [
        TensorPreview(name=f"layer.{i}.weight", shape=(4, 5), size=20, pruned=19) for i in range(3)
    ] + [TensorPreview(name="conv.weight", shape=(2, 2, 5), size=20, pruned=3)]
    return PruningPreview(
        **{"tensors": tensors, "updates": {2: 0.5, 7: 0.75}, "total": 10} | changes
    )


def test_preview_totals_and_text():
    scope = Scope(include=["*.weight"], exclude=["head.weight"])
    plan = make_plan(
        excluded={"head.weight": "output head"}, equivalent=scope, notes=["The end is open."]
    )
    assert (plan.pruned, plan.size) == (60, 80)
    assert str(plan).splitlines() == [
        "Pruning 60 of 80 weights (75.00 %) in 4 tensors; "
        "2 mask updates from 2 to 7 of 10 optimizer steps, then 3 at 0.75",
        "  layer.*.weight: 4x5, 19 pruned each (3 tensors)",
        "  conv.weight: 2x2x5, 3 pruned",
        "Left dense:",
        "  head.weight: output head",
        'To choose otherwise, change scope=Scope(include=["*.weight"], exclude=["head.weight"])',
        "The end is open.",
    ]


def test_preview_with_scope_marks_what_does_not_train():
    untrained = ["conv.weight", "layer.1.weight"]
    lines = str(make_plan().with_scope(DefaultScope(untrained=untrained))).splitlines()
    assert lines[1:] == [
        "  layer.*.weight: 4x5, 19 pruned each (2 tensors)",
        "  layer.1.weight: 4x5, 19 pruned, does not train",
        "  conv.weight: 2x2x5, 3 pruned, does not train",
    ]


def test_preview_without_updates_says_so():
    assert "masks stay unchanged" in str(make_plan(updates={}))
