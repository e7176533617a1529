# Every path here is relative and quoted: the checkout may stand in a folder with a space in its name.

PORT ?= 3000
WORKERS ?= 2
# SAMPLE_DATA, where it is set, is the folder of the sample data: then DATA needs no naming.
DATA ?= $(if $(SAMPLE_DATA),$(SAMPLE_DATA)/online_retail/events.parquet)
export DATA PORT

# What is run for a user runs by ./run, which knows packages, settings, Java and DAGSTER_HOME; .env is only read here
# for the JAVA_HOME that it may name.
ISOLATED = unset PYTHONPATH PYTHONHOME
SETTINGS = if [ -f .env ]; then set -a; . ./.env; set +a; fi
UI = python -m dagster dev -h 127.0.0.1 -p "$$PORT"
RETAIL_HOME = DAGSTER_HOME="$${DAGSTER_HOME:-dagster_home/online_retail}"; export DAGSTER_HOME
# Tests read none of the user's settings, and write to none of the user's places.
RUN_TESTS = $(ISOLATED); unset AUDIENCES_DIR DATA_DIR DAGSTER_HOME SPARK_MASTER SPARK_REMOTE SPARK_CONF SPARK_HOME; \
	if [ -s .venv/java_home ]; then JAVA_HOME="$$(cat .venv/java_home)"; export JAVA_HOME; fi; \
	PATH="$$PWD/.venv/bin:$$PATH"; export PATH;

IS_USABLE = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: help setup demo demo-retail retail-data ui ui-retail test lint types format clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## make .venv: packages, and a Java where the machine has none (PYTHON=... picks the Python)
	@$(ISOLATED); $(SETTINGS); \
	for python in "$(PYTHON)" python3.11 python3.12 python3.13 python3; do \
		if "$$python" -c '$(IS_USABLE)' >/dev/null 2>&1; then exec "$$python" scripts/setup.py; fi; \
	done; \
	echo "setup: No usable Python" >&2; \
	echo "  found:    python3 is '$$(python3 --version 2>&1)'" >&2; \
	echo "  expected: Python 3.11 or newer with its venv and ensurepip modules" >&2; \
	echo "  remedy:   install one (on Debian: python3 and python3-venv), or name one: make setup PYTHON=/path/to/python3" >&2; \
	exit 1

demo: setup ## the whole pipeline on made-up events
	@exec ./run python -m pipelines.demo simulated

demo-retail: retail-data setup ## the whole pipeline on real purchases: DATA=path/to/events.parquet
	@$(RETAIL_HOME); exec ./run python -m pipelines.demo retail --data "$$DATA"

retail-data:
	@if [ ! -f "$$DATA" ]; then \
		echo "demo-retail: The events file is missing" >&2; \
		echo "  found:    DATA='$$DATA'" >&2; \
		echo "  expected: a Parquet file of events" >&2; \
		echo "  remedy:   make demo-retail DATA=path/to/events.parquet" >&2; \
		exit 1; \
	fi

ui: setup ## Dagster's web interface on http://127.0.0.1:3000 (PORT=... changes the port)
	@exec ./run $(UI)

ui-retail: retail-data setup ## the same on what demo-retail made
	@$(RETAIL_HOME); exec ./run env RETAIL_EVENTS="$$DATA" AUDIENCES_DIR=examples/online_retail \
		DATA_DIR=data/online_retail $(UI)

test: setup ## every test, the slow ones too (WORKERS=... processes at once; 2 unless set)
	@$(RUN_TESTS) exec .venv/bin/python -m pytest -m "" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup ## formatting and lint, changing nothing
	@$(ISOLATED); .venv/bin/ruff format --check . && .venv/bin/ruff check .

types: setup ## the type checker
	@$(ISOLATED); exec .venv/bin/mypy

format: setup ## format, and fix what can be fixed
	@$(ISOLATED); .venv/bin/ruff format . && .venv/bin/ruff check --fix .

clean: ## remove caches and build products; keeps .venv, data/ and dagster_home/
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis spark-warehouse metastore_db derby.log
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
