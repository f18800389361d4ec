# Everything a fresh machine needs beside this file is Python 3.11 to 3.13. `make help` lists the targets.

.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV ?= .venv
JOBS ?= 2
ARGS ?=
# The first Python that runs and is new enough; override with `make PYTHON=...`.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 \
	&& echo $$python && break; done)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ISAACLAB_VENV ?= .venv-isaaclab
ISAACLAB_STAMP := $(ISAACLAB_VENV)/.installed
# One thread per process: the tests run in $(JOBS) processes, and the physics has a thread pool of its own.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: help venv install isaaclab run run-ant test test-slow test-isaaclab lint format benchmark clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): setup.py pyproject.toml extension.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; name it with: make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment (on Debian: the package python3-venv)"; exit 1; }
	@# torch first and alone: the pip configuration of the machine decides which build of it comes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

venv: $(STAMP)  ## make .venv once, with the tested versions of constraints.txt

install: $(STAMP)  ## the same as venv

# Isaac Lab has pins of its own, hence an environment of its own; it looks for Python 3.12 before 3.11.
$(ISAACLAB_STAMP): $(addprefix tests/isaaclab/,install.sh requirements.txt assets.py stand_ins.py stand_in_usd.py) setup.py pyproject.toml extension.toml
	tests/isaaclab/install.sh $(ISAACLAB_VENV)

isaaclab: $(ISAACLAB_STAMP)  ## make .venv-isaaclab once: Isaac Lab 3.0 without Kit, for the CPU (about 3 minutes)

run: $(STAMP)  ## the whole story on PointMaze, and pre-training of the ant with video (about 10 minutes on 2 cores)
	$(BIN)/python -m myriad_lab.cli.main story point $(ARGS)

run-ant: $(STAMP)  ## the whole story with the ant (more than an hour; resumes where it was interrupted)
	$(BIN)/python -m myriad_lab.cli.main story ant $(ARGS)

lint: $(STAMP)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint  ## lint and the default tests (under 10 minutes on 2 cores)
	$(BIN)/pytest -n $(JOBS) $(ARGS)

test-slow: $(STAMP)  ## learning runs, and the wheel in an empty folder (a few minutes on 2 cores)
	$(BIN)/pytest -n $(JOBS) -m 'slow and not gpu and not isaaclab' --timeout 1500 $(ARGS)

test-isaaclab: $(ISAACLAB_STAMP)  ## the tests with the real Isaac Lab and both of its physics engines, on the CPU
	ISAACSIM_ASSET_ROOT=$(abspath $(ISAACLAB_VENV))/assets \
		$(ISAACLAB_VENV)/bin/python -m pytest -n $(JOBS) -W default -m isaaclab \
		tests/isaaclab tests/contract tests/cli/test_study.py $(ARGS)

benchmark: $(STAMP)  ## every benchmark, each beside its floor or its bare library
	$(BIN)/python scripts/benchmark.py all $(ARGS)

clean:  ## remove the environments and the caches; runs/ stays
	rm -rf $(VENV) $(ISAACLAB_VENV) build dist .pytest_cache .ruff_cache source/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
