# Everything runs inside .venv, which `make venv` builds; the only prerequisites are make and Python 3.11-3.13; for the
# tests also what builds fastecdsa, which py-libp2p needs: a C compiler and the headers of GMP.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What the contracts are compiled and tested with, from npm by its lock file; users of the package need none of it.
NODE_STAMP := ledger/contracts/node_modules/.lock
# Two workers: several tests start processes of their own.
WORKERS ?= 2
# By itself first, so that pip settles on one build of it (CPU or CUDA, whichever its index offers).
TORCH ?= torch==2.13.0
CHECKED := dht averaging ledger peer bootstrap benchmarks examples tests

.DEFAULT_GOAL := help
.PHONY: help venv test lint types tests format contracts demo bench reliability machines slither sim clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## create .venv and install everything (again only when pyproject or constraints change)

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	supported='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; \
	if ! $(BIN)/python -c "import pip; $$supported" 2>/dev/null; then \
		for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
			$$python -c "$$supported" 2>/dev/null && found=$$python && break; \
		done; \
		if [ -z "$$found" ]; then \
			echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name it: make venv PYTHON=/path/to/python3.12" >&2; exit 1; \
		fi; \
		$$found -m venv --clear $(VENV) || { \
			echo "$$found cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	fi
	@echo "Installing into $(VENV); the first time this takes a few minutes (PyTorch is large)."
	$(BIN)/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[data,bnb,finetune,dp,dev]'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[libp2p]' || echo \
		"Without py-libp2p: contribution-explorer --peer and its tests need a C compiler and GMP's headers to install it." >&2
	@touch $(STAMP)

test: lint types tests ## everything that must pass before a commit lands

lint: $(STAMP) ## style, format and import direction
	$(BIN)/ruff check $(wildcard $(CHECKED))
	$(BIN)/ruff format --check $(wildcard $(CHECKED))
	$(BIN)/lint-imports

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

$(NODE_STAMP): $(STAMP) ledger/contracts/package-lock.json
	$(BIN)/python -c "from ledger.build import install; install()"
	@touch $@

tests: $(STAMP) $(NODE_STAMP) ## the tests alone; one file: make tests ONLY=tests/dht/test_wire.py
	$(BIN)/python -m pytest -q -n $(WORKERS) $(ONLY)

format: $(STAMP) ## rewrite in the house style
	$(BIN)/ruff check --fix $(wildcard $(CHECKED))
	$(BIN)/ruff format $(wildcard $(CHECKED))

contracts: $(STAMP) ## compile ledger/contracts into ledger/artifacts; brings the compiler from npm by its lock file
	$(BIN)/python -m ledger.build

demo: $(STAMP) ## six peers train one model on this machine
	@$(BIN)/python -m peer.demo

bench: $(STAMP) ## every benchmark, beside its baseline; tables on the screen, JSON in benchmarks/out
	@set -e; for file in benchmarks/[a-z]*.py; do \
		$(BIN)/python -m benchmarks.$$(basename $$file .py); \
	done

SEEDS ?= 200
reliability: $(STAMP) ## the whole fault matrix; writes docs/reliability.md (SEEDS=200: an hour on two cores)
	$(BIN)/python -m tests.fault.matrix --seeds $(SEEDS) --workers $(WORKERS) --write

machines: $(STAMP) ## real peers killed in every phase; writes their table into docs/reliability.md (10 minutes)
	$(BIN)/python -m tests.fault.real_matrix --write

# Needs another web3 than ours, so an environment of its own.
slither: $(NODE_STAMP) ## static analysis of the contracts; fails on a finding that nobody has explained
	$(BIN)/python -m venv .slither
	.slither/bin/pip install -q --disable-pip-version-check slither-analyzer==0.11.6
	$(BIN)/python -m tests.ledger.slither .slither/bin/slither

N ?= 1000
ROUNDS ?= 50
SEED ?= 1
sim: $(STAMP) ## N peers for ROUNDS rounds under virtual time; table, JSON and PNG in benchmarks/out (N="64 256 1000")
	$(BIN)/python -m tests.sim.thousand --peers $(N) --rounds $(ROUNDS) --seed $(SEED)

clean: ## remove the environment and everything generated
	rm -rf $(VENV) .slither build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
