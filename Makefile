# Argosy: every command sets up what it needs first. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DOCKERFILE := deploy/images/Dockerfile

MODEL := smollm2-135m-instruct
PROMPT := What is the capital of France? Answer in one sentence.
# `value` keeps a dollar sign in the user's text from being read by make; the recipe reads it from the environment.
override PROMPT := $(value PROMPT)
export PROMPT

# The suite talks to this machine alone.
OFFLINE := env -u http_proxy -u https_proxy -u all_proxy -u HTTP_PROXY -u HTTPS_PROXY -u ALL_PROXY HF_HUB_OFFLINE=1

CHECKS := check-lint check-banned-calls check-imports check-protobuf check-stubs check-monitoring check-chart check-types check-lengths

.PHONY: help setup demo serve test test-fast test-faults test-models check proto chart images constraints bench bench-routers bench-peers clean $(CHECKS)

help: ## List the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## Make the virtual environment in .venv (every command does it when needed)

demo: $(READY) ## Answer PROMPT="..." with a real model, cut 2 x 2, through the router; leaves nothing running
	@$(BIN)/argosy pull $(MODEL)
	@$(BIN)/argosy demo -- "$$PROMPT"

serve: $(READY) ## Serve examples/argosy.yaml until Ctrl-C
	@$(BIN)/argosy pull $(MODEL)
	@exec $(BIN)/argosy up -f examples/argosy.yaml

test: $(READY) ## Run the whole suite (under 25 minutes on 2 cores)
	@$(BIN)/argosy pull $(MODEL)
	@$(OFFLINE) $(BIN)/python -m pytest -m "not faults_long and not models_long"

test-fast: $(READY) ## Run what needs neither Ray nor a model
	@$(OFFLINE) $(BIN)/python -m pytest -q -m "not ray and not model and not faults_long and not models_long" --durations=5

test-faults: $(READY) ## Play every fault of docs/reliability.md, those that take long too
	@$(BIN)/argosy pull $(MODEL)
	@$(OFFLINE) $(BIN)/python -m pytest -m "faults_long or not faults_long" tests/faults tests/unit/test_deterministic_world.py

test-models: $(READY) ## Hold every family in every cut, and Gemma 3 270M (a 240 MB download), against transformers
	@$(BIN)/argosy pull gemma3-270m
	@$(BIN)/python -m pytest -m models_long tests/distributed tests/contract

check: $(READY) ## Lint, format, types, import rules, protobuf, stale stubs, banned calls, lengths
	@$(MAKE) --keep-going --output-sync=target --jobs=2 $(CHECKS)

check-lint:
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet --diff . && echo "lint and format: fine"
check-banned-calls:
	@$(BIN)/python -m tools.banned_calls && echo "banned calls: none"
check-imports:
	@report=$$($(BIN)/lint-imports --no-logo) && echo "import rules: kept" || { echo "$$report"; exit 1; }
check-protobuf:
	@$(BIN)/buf lint proto && echo "protobuf lint: fine"
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null || true); \
	if [ -z "$$tag" ]; then \
		echo "protobuf against the last release: there is no release tag yet, so nothing to break"; \
	else \
		$(BIN)/buf breaking proto --against ".git#tag=$$tag,subdir=proto" && echo "protobuf against $$tag: compatible"; \
	fi
check-stubs:
	@$(BIN)/python -m tools.stubs --check && echo "stubs: fresh"
check-chart:
	@$(BIN)/python -m tools.chart_schema --check && echo "chart schema: fresh"
check-monitoring:
	@$(BIN)/python -m tools.monitoring --check && echo "dashboards, alerts and docs/metrics.md: fresh"
check-types:
	@$(BIN)/mypy
check-lengths:
	@$(BIN)/python -m tools.sizes

proto: $(READY) ## Regenerate the stubs beside the .proto files
	@$(BIN)/buf lint proto
	@$(BIN)/python -m tools.stubs

chart: $(READY) ## Bring the Helm chart's schema up to what argosy.yaml takes
	@$(BIN)/python -m tools.chart_schema

images: $(READY) ## Build the container images with docker (TORCH_INDEX=... has CPU builds of torch)
	@command -v docker >/dev/null || { echo "make images needs docker, or a program that is called so" >&2; exit 1; }
	@$(BIN)/hadolint $(DOCKERFILE)
	@docker build --file $(DOCKERFILE) --target router --tag argosy-router:$(VERSION) .
	@docker build --file $(DOCKERFILE) --target engine-cpu --tag argosy-engine:$(VERSION) \
		--build-arg TORCH_INDEX="$(TORCH_INDEX)" .
	@docker build --file $(DOCKERFILE) --target engine-cuda --tag argosy-engine:$(VERSION)-cuda .

constraints: $(READY) ## Pin what .venv has installed into constraints.txt
	@$(BIN)/python -m tools.constraints

bench: $(READY) ## Measure what the figures in the docs come from
	@$(BIN)/argosy pull $(MODEL)
	@$(BIN)/python -m benchmarks

bench-peers: $(READY) ## Install the engines that `make bench` compares with, under .bench (about 30 minutes, 5 GB)
	@$(BIN)/python -m benchmarks.peers

PEER_ROUTERS := sglang-router==0.3.2 vllm-router==0.1.17

bench-routers: $(READY) ## Measure the router beside sglang-router and vllm-router, which go to .bench/
	@$(BIN)/argosy pull $(MODEL)
	@for peer in $(PEER_ROUTERS); do \
		home=.bench/$${peer%%==*}; \
		[ -x $$home/bin/python ] || $(PYTHON) -m venv $$home; \
		$$home/bin/python -m pip install --quiet --disable-pip-version-check --no-input $$peer; \
	done
	@$(BIN)/python -m benchmarks.bench_router_peers

clean: ## Remove .venv and caches (pulled models stay in the store)
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "Argosy needs Python 3.11 or newer on the PATH (or: make PYTHON=/path/to/python3)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Argosy needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments; install python3-venv (Debian, Ubuntu) or set PYTHON=" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): about 90 packages, once"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt -e '.[dev]' 2>&1 \
		| tee $(VENV)/install.log | sed -un 's/^ *Downloading \([^ ]*\) (\(.*MB\))$$/  downloading \1, \2/p' \
		|| { tail -n 20 $(VENV)/install.log >&2; exit 1; }
	@$(BIN)/python -m model.warm_up
	@touch $(READY)
	@echo "Ready."
