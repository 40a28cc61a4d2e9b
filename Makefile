# Everything that a developer runs. Needs Python 3.11+ and make; the rest is installed into .venv from the lock files.
.DEFAULT_GOAL := help
.PHONY: help run test fuzz verify lint types contracts proto-clean proto publish-contract fmt migration certs lock clean
SHELL := /bin/bash

PYTHON ?= python3
BIN := .venv/bin
# Extra arguments for pytest: make test ARGS="tests/auth -k login"
ARGS ?=
# Tests mostly wait: this many processes share them, each with a Postgres and a Redis of its own. 0: none but pytest itself.
WORKERS ?= 2
CODE := services gateway simulator suite bench/stack.py bench/cut_streams.py bench/retrieval.py bench/memory_scale.py bench/door.py protos/generate.py
# How many generated requests `make fuzz` sends as each of nobody, a user and an administrator.
CASES ?= 2000
TESTS := tests

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

run: .venv/run ## Bring up the whole suite on this machine: the edge on http://127.0.0.1:8080
	@exec $(BIN)/python -m suite

test: .venv/dev ## Run every test on real Postgres, Redis and Envoy
	$(BIN)/pytest -n $(WORKERS) $(ARGS)

fuzz: .venv/dev ## Generated requests against the OpenAPI document: make fuzz CASES=2000
	PARLEY_TEST_REQUESTS=$(CASES) $(BIN)/pytest tests/access/test_document.py -s

verify: lint types contracts proto-clean test ## The gate: what must be green before a commit

lint: .venv/dev ## Style, format, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/dev ## mypy --strict
	$(BIN)/mypy $(CODE) $(TESTS)

contracts: .venv/dev ## Lint the protos, and refuse what would break a client of the published contract
	$(BIN)/buf lint gen/parley.binpb --config buf.yaml --path parley --exclude-path parley/edge
	$(BIN)/buf breaking gen/parley.binpb --against protos/published.binpb --config buf.yaml --path parley --exclude-path parley/edge

proto-clean: .venv/dev ## Check that gen/ is what the protos say
	@fresh=$$(mktemp -d) && $(BIN)/python protos/generate.py $$fresh && diff -rq -x __pycache__ $$fresh gen; \
	  code=$$?; rm -rf $$fresh; [ $$code = 0 ] || { echo "gen/ is not what the protos say: run make proto"; exit 1; }

proto: .venv/dev ## Generate gen/ from the protos
	$(BIN)/python protos/generate.py

publish-contract: .venv/dev ## Make today's contract the one that must not break (at a release)
	cp gen/parley.binpb protos/published.binpb

fmt: .venv/dev ## Format, and mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

migration: .venv/dev ## A new migration: make migration SERVICE=chat NAME=tasks
	$(BIN)/python -m services.runtime.new_revision "$(SERVICE)" "$(NAME)"

certs: .venv/run ## Certificates for development in ./certs: PARLEY_CERTIFICATES=certs make run
	@$(BIN)/python -m suite.certificates --output certs

lock: .venv/dev ## Resolve the lock files anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --upgrade --extra suite pyproject.toml --group build -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --upgrade --extra suite --group build --group dev pyproject.toml -o requirements-dev.lock

clean: ## Remove the virtual environment and caches; your data in .parley stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Parley needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 run"; exit 1; }
	@$(PYTHON) -m venv .venv && $(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment with pip: install its venv package (python3-venv)"; exit 1; }

.venv/run: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Installing what running needs into .venv; this takes a minute the first time."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/dev: requirements-dev.lock .venv/run
	@echo "Installing what developing needs into .venv."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@
