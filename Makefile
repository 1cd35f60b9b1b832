# A machine with Python 3.11 or newer and make needs nothing else. `PYTHON=python3.13 make …` names another interpreter.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help run test test-slow test-cluster lint format coverage-doc bench clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  \1\t/' | expand -t 18

run: $(VENV)/.installed ## the durable server on 127.0.0.1:7233
	@exec $(BIN)/perdure server start $(ARGS)

test: $(VENV)/.installed-dev ## the tests that take seconds
	$(BIN)/python -m pytest -q $(ARGS)

# Several processes that are killed, paused and cut off from each other for many minutes.
CLUSTER := tests/cluster/test_failures.py tests/cluster/test_processes.py

test-slow: $(VENV)/.installed-dev ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow $(addprefix --ignore=,$(CLUSTER)) $(ARGS)

test-cluster: $(VENV)/.installed-dev ## several processes and all their failures; needs PostgreSQL
	$(BIN)/python -m pytest -q -m slow $(CLUSTER) $(ARGS)

lint: $(VENV)/.installed-dev ## ruff and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev ## lays the code out as lint wants it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

coverage-doc: $(VENV)/.installed-dev ## docs/api-coverage.md, from the code
	$(BIN)/python -m perdure.frontend.coverage > docs/api-coverage.md

bench: $(VENV)/.installed ## the benchmark's report; needs Go
	$(BIN)/python bench/run.py $(ARGS)

clean: ## removes what was made
	rm -rf $(VENV) bench/out .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "perdure needs Python 3.11 or newer: none was found on PATH (PYTHON=… names one)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# Dependency groups need pip 25.1; a new environment's may be years old.
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --editable .
	@$(BIN)/python -m compileall -q src  # or the first start would do it
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --editable . --group dev
	@$(BIN)/python -m compileall -q src
	@touch $(VENV)/.installed $@
