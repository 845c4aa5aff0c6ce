# Two commands do all set-up: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
STAMP := .venv/.ready
# Most tests wait more than they compute: on two processors four workers take two thirds of the time that two take.
WORKERS ?= 4
# Dozens of processes start in a run: none should compile the same modules again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup system demo devnet test slow test-all interop check bench format lock sync clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  +##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(STAMP): pyproject.toml requirements/dev.txt tools/setup.sh
	@tools/setup.sh
	@touch $(STAMP)

setup: $(STAMP)  ## make .venv with everything the project needs

system: setup    ## install missing system parts (as root on Debian), or name them
	@tools/system.sh

demo: setup system  ## run the main job: a network on this machine renders an animation and is paid
	@.venv/bin/shem demo

devnet: setup system ## a network on this machine, until Ctrl-C
	@.venv/bin/shem devnet run

test: setup system  ## the tests (under 5 minutes)
	$(PY) -m pytest -n $(WORKERS)

slow: setup system  ## the slow suites: nodes killed at random, faults by the thousand (about 20 minutes)
	@tools/builders.sh
	$(PY) -m pytest -n $(WORKERS) -m slow --timeout 900

test-all: test slow ## both

interop: setup system ## Golem's own clients and daemon, from their registries, against a network of ours; payments on anvil
	@tools/interop.sh
	$(PY) -m pytest tests/interop tests/api -m interop --timeout 600
	$(PY) -m pytest tests/seams/test_chain_nodes.py tests/unit/evm tests/unit/vault -m interop --timeout 600

check: setup     ## style, types, floors, generated code
	.venv/bin/ruff check src tests tools examples
	.venv/bin/ruff format --check src tests tools examples
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) tools/gen_sync.py --check
	$(PY) tools/gen_readme.py --check
	$(PY) tools/build_guest.py --check
	$(PY) tools/build_contracts.py --check

bench: setup system ## measure; writes bench.json
	$(PY) -m tools.bench --out bench.json

format: setup    ## put the code in order
	.venv/bin/ruff format src tests tools examples
	.venv/bin/ruff check --fix src tests tools examples

sync: setup      ## write the generated code anew
	$(PY) tools/gen_sync.py
	$(PY) tools/gen_readme.py

lock: setup      ## resolve dependencies anew
	tools/lock.sh

clean:           ## remove what make made
	rm -rf .venv .build .interop out bench.json .mypy_cache .ruff_cache
