# The only entry: `make` alone lists what there is.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# More arguments for pytest or serve: `make test ARGS="-k batching --cov"`, `make run ARGS=--help`.
ARGS   ?=
# Tests at a time: one more than processors, as many of them wait for processes.
JOBS   := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
# File by file, as the tests of one share what they started; tests/conftest.py has long ones first.
SPREAD := -n $(JOBS) --dist loadfile --no-loadscope-reorder

PIP_TOOLS := pip-tools==7.6.2
COMPILE    = CUSTOM_COMPILE_COMMAND="make lock" .venv-lock/bin/pip-compile --quiet \
	--generate-hashes --allow-unsafe --strip-extras \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host

# What an MLflow server does not need to keep a registry: its plots, formats on disk and frameworks.
MLFLOW_WITHOUT := contourpy cycler docker fonttools google-auth gunicorn joblib kiwisolver \
	matplotlib narwhals pillow prettytable pyarrow pyasn1 pyasn1-modules pyparsing scikit-learn \
	scipy skops threadpoolctl wcwidth

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run demo test test-fast bench bench-setup check fmt models lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.dev ## create .venv with everything that running, testing and linting needs

run: $(VENV)/.run ## serve (inference on 8080, admin on 8082); Ctrl-C stops
	@exec $(BIN)/tiltyard serve $(ARGS)

demo: $(VENV)/.run ## real flights through three experiments that decide themselves
	@exec $(BIN)/tiltyard demo $(ARGS)

test: $(VENV)/.dev .venv-mlflow/.stamp ## run every test
	$(BIN)/pytest $(SPREAD) $(ARGS)

test-fast: $(VENV)/.dev ## run the tests that are neither slow nor end to end
	$(BIN)/pytest $(SPREAD) -m "not slow and not e2e" $(ARGS)

bench: $(VENV)/.dev ## measure beside a bare endpoint and the peers, ten minutes; ARGS=--help
	@$(BIN)/python loadtests/run.py --workers 1 $(ARGS)

bench-setup: $(VENV)/.dev ## make the environments of the peers
	@$(BIN)/python loadtests/run.py --setup $(ARGS)

check: $(VENV)/.dev ## check format, lint, spelling, types and the floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fmt: $(VENV)/.dev ## format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

models: .venv-models/.stamp ## train the sample models again, in an environment of their own
	.venv-models/bin/python models/flight-delay/train.py
	.venv-models/bin/python models/digits/train.py

# Compile on Linux with Python 3.11, the oldest that is supported. A pin moves only when it has to:
# `make lock ARGS=--upgrade` moves all, `make lock ARGS="--upgrade-package NAME"` one.
lock: .venv-lock/.stamp ## compile the lock files again from pyproject.toml and the requirements.in
	$(COMPILE) $(ARGS) --all-build-deps --extra dev -o requirements-dev.lock pyproject.toml
	$(COMPILE) $(ARGS) --all-build-deps -c requirements-dev.lock -o requirements.lock pyproject.toml
	cd models && $(COMPILE:.venv-lock/%=../.venv-lock/%) $(ARGS) -o requirements.lock requirements.in
	cd tests/mlflow && $(subst --allow-unsafe,$(MLFLOW_WITHOUT:%=--unsafe-package %),$(COMPILE:.venv-lock/%=../../.venv-lock/%)) \
		$(ARGS) -c ../../requirements-dev.lock -o requirements.lock requirements.in

clean: ## remove the environments, the caches and what builds left behind
	rm -rf .venv .venv-mlflow .venv-models .venv-lock loadtests/.envs build dist *.egg-info .coverage htmlcov
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find gateway tests models loadtests -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, two stamps: what runs, and on top of it what tests and lints.

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say make PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.run: $(VENV)/pyvenv.cfg requirements.lock pyproject.toml
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

# The server that tests/e2e/test_mlflow.py follows. Where it cannot be had, that test says so.
.venv-mlflow/.stamp: tests/mlflow/requirements.lock
	$(PYTHON) -m venv --clear .venv-mlflow
	@.venv-mlflow/bin/pip install --quiet --no-deps --require-hashes -r tests/mlflow/requirements.lock \
		&& touch $@ || { rm -rf .venv-mlflow; echo "MLflow could not be installed; its tests are skipped"; }

.venv-models/.stamp: models/requirements.lock
	$(PYTHON) -m venv --clear .venv-models
	.venv-models/bin/pip install --quiet --require-hashes -r models/requirements.lock
	@touch $@

.venv-lock/.stamp:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/pip install --quiet "$(PIP_TOOLS)"
	@touch $@
