# `make` or `make help` lists the targets. PYTHON, DATA, MODEL, ARGS and others are set on the command line:
#   make test PYTHON=python3.13 ARGS="-k schedule"
PYTHON ?= python3
DATA ?=
MODEL ?=
ARGS ?=
STUDENT ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Stamps: when the run-time packages, and those for tests and development, were last installed.
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help install demo demo-ablation smoke test faults lint types format clean \
	mutants bench-masks bench-sharded bench-steps bench-padding bench-glue bench-peers bench-recipe bench-study \
	bench-soup bench-poster bench-sweep bench-compatibility bench-storage bench-hardware

help:  ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.x] [DATA=folder] [MODEL=folder-or-hub-id] [ARGS=...]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(DEV)  ## make .venv with the pinned packages, test and development ones included

demo: $(RUN)  ## prune 95 % of a tiny BERT while it learns; offline, under 90 s, ends with the result's folder
	$(BIN)/python train.py $(ARGS)

demo-ablation: $(RUN)  ## the same with and without distillation and one-shot, three seeds each
	$(BIN)/python benchmarks/ablation.py $(ARGS)

smoke: $(RUN)  ## every stage in under 30 s, offline; fails if the result is not as expected
	$(BIN)/python train.py experiment=smoke $(ARGS)

# Files in order of their names: xdist would put those with few tests last, which take longest.
test: $(DEV)  ## all tests except the slow ones; ARGS are passed to pytest
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(DEV)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

faults: $(DEV)  ## sweeps killed twenty times, Slurm, a full disk, several processes; 12 minutes
	$(BIN)/python -m pytest -m slow tests $(ARGS)

mutants: $(DEV)  ## mutation tests: put faults into the code one at a time, do the tests notice?
	$(BIN)/python tools/mutants.py

types: $(DEV)  ## mypy, strict
	$(BIN)/mypy

format: $(DEV)  ## ruff: fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-masks: $(RUN)  ## time of a mask update and of projection at BERT-base's size
	$(BIN)/python benchmarks/mask_update.py $(ARGS)

bench-sharded: $(RUN)  ## memory of a mask update of a model that is sharded over processes
	$(BIN)/python benchmarks/sharded.py $(ARGS)

bench-steps: need-MODEL $(RUN)  ## time of a step, plain against distilled and pruned: MODEL=
	$(BIN)/python benchmarks/step_time.py --model "$(MODEL)" $(ARGS)

bench-peers: $(RUN)  ## comparison with Lightning's, torch.ao's and torchao's pruning; rewrites docs/why.md
	$(BIN)/python -m pip --disable-pip-version-check install -q --no-deps torchao==0.18.0
	$(BIN)/python benchmarks/peers.py --write $(ARGS)

bench-compatibility: $(RUN)  ## the callback on sixty other projects; rewrites docs/compatibility.md
	$(BIN)/python -m pip --disable-pip-version-check install -q --no-deps peft==0.21.2 accelerate==1.15.0 \
		schedulefree==1.4.1 pytorch_optimizer==4.1.0
	$(BIN)/python benchmarks/compatibility.py --write $(ARGS)

bench-recipe: need-DATA $(RUN)  ## effect of single settings on MRPC at 95 %, hours: DATA= and MODEL=
	$(BIN)/python benchmarks/recipe.py --data "$(DATA)" $(if $(MODEL),--model "$(MODEL)") $(ARGS)

bench-study: need-DATA $(RUN)  ## what helps at 95 %, one change per row, days: DATA=, MODEL= and TEXT=
	$(BIN)/python benchmarks/study.py --data "$(DATA)" $(if $(MODEL),--model "$(MODEL)") $(if $(TEXT),--text "$(TEXT)") $(ARGS)

bench-soup: need-DATA $(RUN)  ## the mean of two students with one mask: DATA= and MODEL=
	$(BIN)/python benchmarks/soup.py --data "$(DATA)" $(if $(MODEL),--model "$(MODEL)") $(ARGS)

bench-poster: need-DATA $(RUN)  ## the poster's table, days: DATA=, MODEL= and TEXT= (a folder)
	$(BIN)/python benchmarks/poster.py --data "$(DATA)" $(if $(MODEL),--model "$(MODEL)") $(if $(TEXT),--text "$(TEXT)") $(ARGS)

bench-padding: need-DATA $(RUN)  ## token slots per real token: DATA= with <task>/train.parquet, MODEL= optional
	$(BIN)/python benchmarks/padding.py --data "$(DATA)" $(if $(MODEL),--model "$(MODEL)") $(ARGS)

bench-glue: need-DATA $(RUN)  ## the table on real tasks, hours: DATA= and MODEL=
	$(BIN)/python benchmarks/glue.py --data "$(DATA)" $(if $(MODEL),--model "$(MODEL)") $(ARGS)

bench-hardware: $(DEV)  ## speed of sparse models on this machine; draws docs/speed.png; STUDENT=<run folder>: of its shape too, in outputs/bench-student
	$(BIN)/python benchmarks/hardware.py --curve 1 32 $(ARGS)
	$(if $(STUDENT),$(BIN)/kd-prune bench "$(STUDENT)" --curve --sentences 64 --rounds 3 --out outputs/bench-student)

bench-sweep: need-DATA $(RUN)  ## the sweep of the README's picture, hours: DATA= and MODEL=
	$(BIN)/python benchmarks/sweep.py --data "$(DATA)" $(if $(MODEL),--model "$(MODEL)") $(ARGS)

bench-storage: $(RUN)  ## bytes and loading times of exported folders; ARGS="--run <folder>" adds the metric
	$(BIN)/python benchmarks/storage.py $(ARGS)

clean:  ## remove .venv and the tools' caches; outputs/ stays
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

need-%:
	@test -n "$($*)" || { echo "error: $* is missing; run: make $(firstword $(MAKECMDGOALS)) $*=<folder>" >&2; exit 1; }

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: kd_prune needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1 || true);" \
			"name another: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Torch is installed first, so that the other packages do not bring another build of it.
$(RUN): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing the pinned packages into $(VENV); this happens once and takes a few minutes."
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(DEV): $(RUN)
	@echo "Installing the packages for tests and development into $(VENV)."
	$(PIP) install -q -c constraints.txt -e '.[test,dev]'
	@touch $@
