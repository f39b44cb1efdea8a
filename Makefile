# `make help` explains itself. Two knobs of `make serve`: PORT and DATA_DIR.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PORT ?= 8000
DATA_DIR ?= ./data
PYTHON ?= python3.11
VENV ?= .venv
# The CPU build of torch is several GB smaller. Where pip needs telling, name its index here:
#   make serve TORCH_ARGS="--index-url <the index of CPU builds>"
TORCH_ARGS ?=

# Threads of OpenMP that wait sleep, so that tests beside each other do not wait for spinning ones.
export OMP_WAIT_POLICY ?= PASSIVE

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV) || { echo "Python 3.11 with venv is needed: apt-get install python3.11 python3.11-venv, or name another with PYTHON=..."; exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet $(TORCH_ARGS) "torch==2.13.0"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[worker,dev]"
	@touch $@

.PHONY: setup
setup: $(STAMP) ## Make the virtual environment and install everything into it

.PHONY: serve
serve: $(STAMP) ## Run the service: PORT=8000 DATA_DIR=./data
	@exec $(BIN)/sparke serve --port $(PORT) --data-dir $(DATA_DIR)

ENGINE_TESTS := tests/sparke_engine tests/benchmarks
HTTP_TESTS := tests/app/http
FUZZ_TESTS := tests/app/http/test_fuzz.py

# Two parts at a time have a core each: threads of torch on both would wait for one another, on a busy machine for minutes.
test test-engine test-http test-fuzz test-service test-whole: export OMP_NUM_THREADS ?= 1

.PHONY: test
test: $(STAMP) ## The default test suite (under 15 minutes on two cores): its parts side by side, two at a time, the longest first
	@$(MAKE) --no-print-directory --keep-going --jobs 2 --output-sync=line test-service test-whole test-engine test-http test-fuzz

.PHONY: test-engine
test-engine: $(STAMP) ## The part of it that needs no service
	@$(BIN)/python -m pytest $(ENGINE_TESTS)

.PHONY: test-http
test-http: $(STAMP) ## The part that is the HTTP interface's
	@$(BIN)/python -m pytest $(HTTP_TESTS) $(FUZZ_TESTS:%=--ignore=%)

.PHONY: test-fuzz
test-fuzz: $(STAMP) ## What the HTTP interface is sent by chance: in a process of its own, with no server of other tests beside it
	@$(BIN)/python -m pytest $(FUZZ_TESTS)

.PHONY: test-service
test-service: $(STAMP) ## The part that is of workers, Redis and commands
	@$(BIN)/python -m pytest tests/app $(HTTP_TESTS:%=--ignore=%)

.PHONY: test-whole
test-whole: $(STAMP) ## The rest: whole services, what they are deployed with, documents, architecture
	@$(BIN)/python -m pytest tests --ignore=tests/app $(ENGINE_TESTS:%=--ignore=%)

SLOW := -m "slow and not gpu" --timeout 1800
# Alerts, fail-overs and restarts within seconds: beside others they would be late.
TIMED_TESTS := $(addprefix tests/benchmarks/,test_monitoring.py test_failover.py test_rolling.py)

.PHONY: test-slow
test-slow: $(STAMP) ## The tests marked slow: two parts side by side, then those that are about seconds
	@$(MAKE) --no-print-directory --keep-going --jobs 2 --output-sync=line test-slow-e2e test-slow-rest
	@$(BIN)/python -m pytest $(TIMED_TESTS) $(SLOW)

.PHONY: test-slow-e2e
test-slow-e2e: $(STAMP) ## The part of them that is of whole services
	@$(BIN)/python -m pytest tests/e2e tests/deploy $(SLOW)

.PHONY: test-slow-rest
test-slow-rest: $(STAMP) ## The rest: training, benchmarks, chaos, the wheel
	@$(BIN)/python -m pytest tests --ignore=tests/e2e --ignore=tests/deploy $(TIMED_TESTS:%=--ignore=%) $(SLOW)

.PHONY: test-gpu
test-gpu: $(STAMP) ## The tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu

.PHONY: lint
lint: $(STAMP) ## Lint, formatting, types and architecture
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/hadolint docker/*.Dockerfile

.PHONY: secrets
secrets: $(STAMP) ## Look for secrets in the working tree; asks nobody
	@BIN=$(BIN) .ci/secrets

.PHONY: audit
audit: $(STAMP) ## Look for known faults of dependencies, where a database of them answers
	@$(BIN)/python .ci/audit.py

.PHONY: fix
fix: $(STAMP) ## Format and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: docs
docs: $(STAMP) ## Write the dashboards, the cluster's rules, and in docs the pages that are made from the code
	@$(BIN)/python deploy/grafana/write_dashboards.py
	@$(BIN)/python docs/write_configuration.py
	@$(BIN)/python docs/write_logs.py
	@$(BIN)/python docs/write_metrics.py
	@$(BIN)/python docs/write_pipelines.py
	@$(BIN)/python docs/write_schedulers.py
	@$(BIN)/python deploy/kubernetes/write_rules.py

.PHONY: bench
bench: $(STAMP) ## The main claim on the demo model, in short: some minutes on two cores
	@$(BIN)/python benchmarks/demo_accuracy.py --images 64 --steps 12 --scales 1 9
	@$(BIN)/python benchmarks/diversity.py --prompts 8 --images 8 --steps 12 \
		scale=9,strength=0 scale=9,strength=0.5 scale=9,strength=1 scale=1,strength=0

BENCH_PYTHON ?= $(BIN)/python
.PHONY: bench-gpu
bench-gpu: ## All that is measured on a GPU, with the Python that BENCH_PYTHON names: OUT=runs/gpu LIMIT_S=1200
	@PYTHON=$(BENCH_PYTHON) benchmarks/gpu.sh

.PHONY: check
check: lint secrets audit test ## What CI runs: lint, types, architecture, secrets, known faults, tests

.PHONY: clean
clean: ## Remove the virtual environment and caches (never DATA_DIR)
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist *.egg-info
