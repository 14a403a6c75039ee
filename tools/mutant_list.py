"""Mutants: faults that the tests must notice, area by area."""

from __future__ import annotations

from mutation import Assume, Drop, Mutant, Replace

SCHEDULE = "tests/pruning/test_schedule.py"
UPDATES = "tests/pruning/test_update_schedule.py"
PRUNER = "tests/pruning/test_pruner.py"
PRUNER_STATE = "tests/pruning/test_pruner_state.py"
PRUNER_REFUSALS = "tests/pruning/test_pruner_refusals.py"
REGROW = "tests/pruning/test_regrow.py"
NM = "tests/pruning/granularity/test_nm.py"
SELECTION = "tests/pruning/test_selection.py"
CALLBACK = "tests/lit/test_callback.py"
PLUG_IN = "tests/lit/test_plug_in.py"
ODD_LOOPS = "tests/lit/test_odd_loops.py"
RUN_END = "tests/lit/test_run_end.py"
LOSSES = "tests/distillation/test_losses.py"
MILESTONES = "tests/pipeline/test_milestones.py"

PRUNING = [
    Mutant(
        "the last update of the ramp is missing",
        "pruning", "_candidate_updates", Replace(r"range\(updates \+ 1\)", "range(updates)"),
        UPDATES,
    ),
    Mutant(
        "the ramp is quadratic instead of cubic",
        "pruning", "cubic", Replace(r"\*\* 3$", "** 2"),
        SCHEDULE,
    ),
    Mutant(
        "the ramp begins one step late",
        "pruning", "Schedule.__call__", Replace(
            r"progress < self\.begin", "progress <= self.begin"
        ),
        SCHEDULE,
    ),
    Mutant(
        "the ramp does not pause at milestones",
        "pruning", "_candidate_updates", Replace(r"\+ paused_steps", ""),
        UPDATES,
    ),
    Mutant(
        "NaN weights are ranked",
        "pruning", "compute_scores", Assume(r"contains_nan\(weight\)", False),
        PRUNER_REFUSALS,
    ),
    Mutant(
        "a state resumes with any ramp",
        "pruning", "check_same_ramp", Assume("isclose", False),
        PRUNER_STATE,
    ),
    Mutant(
        "a resumed run makes a ramp of its own",
        "pruning", "Pruner._load_update_schedule", Replace(
            r"_schedule_updates\(state\['total_steps'\]\)", "_schedule_updates(self.total_steps)"
        ),
        PRUNER_STATE,
    ),
    Mutant(
        "a state resumes with another granularity",
        "pruning", "check_same_settings", Assume(r"!= value", False),
        "tests/pruning/test_saved_settings.py",
    ),
    Mutant(
        "zeros of an initialization never train",
        "pruning", "set_initial_masks", Drop(r"\.fill_\(True\)"),
        "tests/pruning/test_initial_zeros.py",
    ),
    Mutant(
        "a tensor loses its last weight",
        "pruning", "LastWeights.limit", Assume("allow_empty", True),
        "tests/pruning/test_last_weights.py",
    ),
    Mutant(
        "n:m runs along the outputs of a transposed layer",
        "pruning", "on_rows", Assume("unstructured", True),
        "tests/pruning/test_layout.py",
    ),
    Mutant(
        "an average that a wrapped optimizer writes is not projected",
        "pruning", "hook_steps", Replace(r"None, after_wrapper\)", "None, int)"),
        "tests/pruning/test_step_hooks.py",
    ),
    Mutant(
        "an n:m pattern prunes more than it can",
        "pruning", "NM.__call__", Drop(r"count = self\.reachable"),
        NM,
    ),
    Mutant(
        "an allocation is checked with the present scores only",
        "pruning", "CheckedCounts.check_final_sparsity", Replace(
            r"worst = self\._counts\(.*\)", "worst = self._counts(final)"
        ),
        NM,
    ),
    Mutant(
        "of tied scores the lower indices are kept",
        "pruning", "unstructured", Replace(r"ties\[-(\w+):\]", r"ties[:\1]"),
        SELECTION,
    ),
    Mutant(
        "tied scores at the threshold are all kept",
        "pruning", "unstructured", Replace(
            r"(stay = \w+\(values, operator\.)gt", r"\1ge"
        ),
        SELECTION,
    ),
    Mutant(
        "a sample that misses the threshold is believed",
        "pruning", "unstructured", Assume(r"0 <= \w+ <= len\(inside\)", True),
        SELECTION,
    ),
    Mutant(
        "counts are truncated instead of rounded",
        "pruning", "num_pruned", Replace(r"round\(", "int("),
        SELECTION,
    ),
    Mutant(
        "pruned weights return",
        "pruning", "Pruner._combine_masks", Drop(r"mask = mask & self\.masks"),
        REGROW,
    ),
    Mutant(
        "the largest weights are pruned",
        "pruning", "magnitude", Replace(r"return weight\.abs\(\)", "return -weight.abs()"),
        PRUNER,
    ),
    Mutant(
        "an update is made twice",
        "pruning", "Pruner.update", Replace(r" or self\._\w+\[due - 1\] <= self\._updated_at", ""),
        PRUNER,
    ),
    Mutant(
        "an update is one step late",
        "pruning", "Pruner.update", Replace(r"(bisect_right\(self\._\w+, step)\)", r"\1 - 1)"),
        PRUNER,
    ),
    Mutant(
        "masks are not loaded",
        "pruning", "MaskedParameters.load_state_dict", Drop(r"mask\.copy_"),
        PRUNER_STATE,
    ),
    Mutant(
        "regrown weights keep their momentum",
        "pruning", "MaskedParameters._apply_new_mask", Drop(r"^reset_optimizer_state"),
        REGROW,
    ),
    Mutant(
        "gradients that are not finite are observed",
        "pruning", "MaskedParameters.observe", Replace(
            r"finite\((grad_or_input\[name\])\)", r"\1"
        ),
        REGROW,
    ),
    Mutant(
        "parameters that no optimizer holds are pruned",
        "pruning", "default_scope", Replace(r" & set\[int\]\(\)\.union\(\*groups\)", ""),
        "tests/pruning/test_chosen_scope.py",
    ),
]  # fmt: skip

LIGHTNING = [
    Mutant(
        "a moving average may overwrite the zeros of a checkpoint",
        "lit", "refuse_later_average", Assume("is_of_class_named", False),
        "tests/lit/test_weight_averaging.py",
    ),
    Mutant(
        "every process takes its own clock for a rewind",
        "lit", "RunLength.synchronized_step", Assume(r"self\.seconds", False),
        "tests/lit/test_rewind.py",
    ),
    Mutant(
        "projection comes before the optimizer step",
        "pruning", "hook_steps", Replace("step_post_hook", "step_pre_hook"),
        f"{CALLBACK} {PLUG_IN}",
    ),
    Mutant(
        "there is no projection between two updates",
        "lit", "OptimizerHooks.attach.after_step", Drop(r"pruner\.project"),
        CALLBACK,
    ),
    Mutant(
        "a step projects weights that a pending backward pass of another network needs",
        "lit", "OptimizerHooks.attach.after_step", Replace(
            r"pruner\.project\(.*\)", "pruner.project()"
        ),
        ODD_LOOPS,
    ),
    Mutant(
        "a fit takes masks of an earlier fit for those of a checkpoint",
        "lit", "AveragedWeights.setup", Drop(r"self\.pruner = None"),
        ODD_LOOPS,
    ),
    Mutant(
        "a skipped optimizer step updates the masks",
        "lit", "SparsityCallback.on_train_batch_end", Assume("not stepped", False),
        PLUG_IN,
    ),
    Mutant(
        "a ramp that the run cuts is not made up for",
        "lit", "RampPosition.claim_last_update",
        Replace(r"return not stopped or .*", "return False"),
        RUN_END,
    ),
    Mutant(
        "the last checkpoint is saved before the ramp ends",
        "lit", "SparsityCallback.on_train_batch_end", Replace(
            r"self\._position\.ends_with_batch\(trainer\)", "False"
        ),
        RUN_END,
    ),
    Mutant(
        "the accumulation of the first epoch is taken for that of all",
        "lit", "steps_in_epochs", Assume("not scheduled", True),
        RUN_END,
    ),
    Mutant(
        "a run that turns out shorter keeps its plan",
        "lit", "RunLength.replan", Assume("not done < end < planned", True),
        RUN_END,
    ),
    Mutant(
        "two callbacks prune one weight",
        "lit", "CallbackSettings.refuse_overlap", Assume("shared :=", False),
        "tests/lit/test_several_callbacks.py",
    ),
    Mutant(
        "every process has masks of its own",
        "lit", "broadcast_mask", Drop(r"dist\.broadcast"),
        "tests/lit/test_ddp.py",
    ),
    Mutant(
        "averaged weights stay dense",
        "lit", "AveragedWeights.on_fit_end", Drop(r"self\.pruner\.project"),
        "tests/lit/test_weight_averaging.py",
    ),
    Mutant(
        "the steps of every optimizer count",
        "lit", "RunLength.from_fit", Assume("automatic_optimization", False),
        PLUG_IN,
    ),
    Mutant(
        "the teacher has dropout",
        "lit", "DistillModule._prepare_teacher", Replace(r"\.eval\(\)", ""),
        "tests/lit/test_module.py",
    ),
    Mutant(
        "a checkpoint is not saved before the user's signal handler runs",
        "lit", "SignalListener.act", Assume("not in self._user_handlers", True),
        "tests/lit/test_checkpointing.py -k process_handles",
    ),
]  # fmt: skip

DISTILLATION = [
    Mutant(
        "padding counts in hidden states",
        "distillation", "_masked_mse", Replace(r"\.masked_fill_\(~keep, 0\.0\)", ""),
        LOSSES,
    ),
    Mutant(
        "soft targets lack the factor T²",
        "distillation/losses.py", "soft_cross_entropy", Replace(r"temperature \*\* 2", "1.0"),
        LOSSES,
    ),
]  # fmt: skip

PIPELINE = [
    Mutant(
        "training continues from the mean weights of a milestone",
        "pipeline", "Milestones._on_milestone", Drop(r"weight\.copy_\(\w+\[name\]\)"),
        MILESTONES,
    ),
    Mutant(
        "a milestone is almost the weights of its last step",
        "pipeline", "Milestones._add", Replace(r"1 / self\._count", "0.9"),
        MILESTONES,
    ),
    Mutant(
        "a job takes itself for a process of the job before",
        "pipeline", "distributed_fit", Drop(r"os\.environ\.pop"),
        "tests/cli/test_ddp.py -k sweep",
    ),
]  # fmt: skip

SWEEP = [
    Mutant(
        "the difference to the teacher has the wrong sign",
        "sweep", "compare", Replace(r"s - t for", "t - s for"),
        "tests/sweep/test_summary.py",
    ),
    Mutant(
        "a seed counts twice",
        "sweep", "summarize_runs", Replace(
            r"group\[run\.seed\] = Member", "group[len(group)] = Member"
        ),
        "tests/sweep/test_summary.py",
    ),
    Mutant(
        "NaN counts as a metric",
        "results.py", "ModelResult.__post_init__", Assume("isfinite", False),
        "tests/sweep/test_collect.py",
    ),
    Mutant(
        "a failure is recorded as a success",
        "sweep", "run_lock", Replace("'state', 'failed'", "'state', 'finished'"),
        "tests/sweep/test_status.py",
    ),
    Mutant(
        "a finished job runs again",
        "sweep", "run_sweep_job", Assume("unfinished", False),
        "tests/sweep/test_runner.py",
    ),
    Mutant(
        "a trial is compared with others while its sparsity still rises",
        "sweep", "MedianStoppingRule.__call__", Replace(
            r"sparsity < self\.final - 0\.001", "False"
        ),
        "tests/sweep/test_search.py",
    ),
]  # fmt: skip

EXPORT = [
    Mutant(
        "a packed file may have more values than positions",
        "export", "_check_sparse", Assume(r"stored != values", False),
        "tests/export/test_coding.py",
    ),
    Mutant(
        "a packed matrix may have another shape than the model's",
        "export", "check_file", Assume("expected is not None", False),
        "tests/export/test_packed_file.py",
    ),
    Mutant(
        "the packed values are read in another type",
        "export", "Unpack.convert", Replace(r"decode\(parts, parameter\.dtype\)", "decode(parts)"),
        "tests/export/test_quantizer.py",
    ),
    Mutant(
        "merges of a token's parts leave the vocabulary",
        "export", "tokens_to_keep", Drop(r"^kept \|= new$"),
        "tests/export/test_vocabulary.py",
    ),
    Mutant(
        "a folder of this machine is published as the data set",
        "export", "hub_id", Assume("isinstance", False),
        "tests/export/test_card.py",
    ),
]  # fmt: skip

MUTANTS = PRUNING + LIGHTNING + DISTILLATION + PIPELINE + SWEEP + EXPORT
