# Everything lives in .venv, installed from pinned and hashed requirements; nothing else on the machine changes.
# A second run installs nothing: the stamps in .venv are newer than what they were made from.

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
INSTALLED := $(VENV)/.control-panel
MANIFEST := dbt_project/target/manifest.json
DBT_SOURCES := $(shell find dbt_project -path dbt_project/target -prune -o \( -name '*.sql' -o -name '*.yml' \) -print)

FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	if $$python -c '$(FITS)' 2>/dev/null; then echo $$python; break; fi; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-strip-extras --no-emit-index-url --no-emit-find-links --no-header --no-annotate

.NOTPARALLEL:
.PHONY: help setup demo up test lint bench clean-data requirements

help: ## Say what there is to make.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## Set everything up and run the main job once. TASKS=path takes your own tasks.
	@$(BIN)/control-panel demo $(TASKS)

up: setup ## Start Dagster on http://127.0.0.1:3000, with its database. Ctrl-C stops all of it.
	@$(BIN)/control-panel up

test: lint ## Set everything up and run linters, types, layer contracts and tests.
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist worksteal

lint: $(DEV) setup ## Run linters, types and layer contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(BENCH) setup ## Run every benchmark and print a table.
	@$(BIN)/python -m benchmarks

clean-data: setup ## Forget the embedded database, after asking.
	@$(BIN)/control-panel clean-data

requirements: $(DEV) ## Pin the newest versions that requirements/*.in allow, with hashes.
	$(COMPILE) requirements/runtime.in --output-file requirements/runtime.txt
	$(COMPILE) requirements/runtime.txt requirements/celery.in --output-file requirements/celery.txt
	$(COMPILE) requirements/dev.in --output-file requirements/dev.txt
	$(COMPILE) requirements/bench.in --output-file requirements/bench.txt

setup: $(RUNTIME) $(INSTALLED) $(MANIFEST) ## Set everything up, and start nothing.

$(BIN)/python:
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(FITS)'; then \
		echo "Control Panel needs Python 3.11, 3.12 or 3.13; $(or $(PYTHON),python3) is not that." \
			"Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(DEV): requirements/dev.txt | $(BIN)/python
	@echo "Installing what the platform and its tests need into $(VENV), which takes a minute or two ..."
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@

$(BENCH): requirements/bench.txt | $(BIN)/python
	@echo "Installing what benchmarks compare with into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/bench.txt
	@touch $@ $(DEV)

$(RUNTIME): requirements/runtime.txt | $(BIN)/python
	@[ $(DEV) -nt requirements/runtime.txt ] || { \
		echo "Installing what the platform needs into $(VENV), which takes a minute or two ..."; \
		$(PIP) install --require-hashes -r requirements/runtime.txt; }
	@touch $@

$(INSTALLED): pyproject.toml | $(RUNTIME)
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

$(MANIFEST): $(DBT_SOURCES) $(RUNTIME)
	@DO_NOT_TRACK=1 $(BIN)/dbt --quiet parse --no-partial-parse --project-dir dbt_project --profiles-dir dbt_project
	@touch $@
