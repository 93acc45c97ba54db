# One command a verb; `make` lists them. Everything is installed into .venv, nothing outside the repository but a cache.

SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(VENV)/bin/uv
# People with an open network may fetch PyTorch's own CPU wheels: make test TORCH_INDEX_URL=…
TORCH_INDEX_URL ?=
export TORCH_INDEX_URL
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format down crds tutor bench clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Bring up a real Kubernetes and have the tutor answer through it (or use KUBECONFIG's cluster)
	@$(PYTHON) demo/run.py

test: $(VENV)/.all ## Run all tests: unit, numeric, and end to end on the local Kubernetes
	@$(PYTHON) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.all ## Check style, types and architecture
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.all ## Format the code and sort imports
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

down: ## End the local Kubernetes and leave nothing but the cache
	@tests/cluster/cluster down

crds: $(VENV)/.all ## Generate crds/ from the pydantic models
	@$(PYTHON) -m deepseek_operator.api.crd --write crds

tutor: $(VENV)/.all ## Train the tutor again from its seed (about 37 minutes)
	PYTHONPATH=training $(PYTHON) -m tutor_training.train --out runtime/deepseek_runtime/tutor

bench: $(VENV)/.all ## Time the runtime and its peers on this machine (BENCH_ARGS="--quick --json": ten minutes)
	@$(PYTHON) -m benchmarks.yardstick $(BENCH_ARGS)

clean: ## Remove .venv and caches of this folder
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(UV):
	@python3 -m venv $(VENV) || { echo "Python 3.11 or newer with its venv module is needed: apt-get install python3-venv" >&2; exit 2; }
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: pyproject.toml constraints.txt | $(UV)
	@$(UV) pip install --quiet --python $(PYTHON) -c constraints.txt --group demo
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(UV)
	@$(if $(TORCH_INDEX_URL),$(UV) pip install --quiet --python $(PYTHON) --index-url $(TORCH_INDEX_URL) torch)
	@$(UV) pip install --quiet --python $(PYTHON) $(if $(TORCH_INDEX_URL),,-c constraints.txt) -e '.[operator,runtime]' --group dev
	@touch $@
