# Every command a developer needs. `make` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test unit sim bench crash soak lint types imports format proto diagrams clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: $(READY)  ## set up .venv with everything (does nothing when nothing changed)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --only-binary pyeclib -c constraints.txt -e '.[dev]'
	@# Without what it depends on: data sets that want an older fsspec than our S3 does, pyarrow and pandas. Its manager loads none of it.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt torchtitan tyro docstring-parser typeguard
	@touch $@

demo: install  ## the main job: train, lose a node, rebuild it from parity, go on bit-exact
	$(BIN)/ckptd demo

test: install lint types imports unit  ## everything that must hold: lint, format, types, import rules, tests

unit: install  ## the tests alone
	$(BIN)/python -m pytest

sim: install  ## attack the promises: SEEDS=10000 seeds from START=0 on JOBS=2 processes
	$(BIN)/python -m tests.sim --seeds $(or $(SEEDS),10000) --start $(or $(START),0) --jobs $(or $(JOBS),2)

lint: install  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy, strict
	$(BIN)/mypy -p ckptd
	$(BIN)/mypy tests benchmarks

imports: install  ## import-linter: the layers
	$(BIN)/lint-imports --no-cache

format: install  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: install  ## regenerate the wire messages from ckpt/wire/ckptd.proto
	cd ckpt/wire && ../../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. ckptd.proto

bench: install  ## measure beside every rival, and put figures and plots into docs/benchmarks.md (STATE=512MiB)
	$(BIN)/python -m benchmarks.stall --state $(or $(STATE),512MiB) --step-ms 10,200 --steps 15 --rounds 2 --report build/bench
	$(BIN)/python -m benchmarks.recover --state $(or $(STATE),512MiB) --rounds 2 --kills 100 --report build/bench \
		--kill-peers 'dlrover,ckptd captured,ckptd sealed'
	$(BIN)/python -m benchmarks.persist --state $(or $(STATE),512MiB) --report build/bench
	$(BIN)/python -m benchmarks.publish build/bench

crash: install  ## stop real daemons at every primitive step (MINUTES=60)
	$(BIN)/python -m tests.crash --minutes $(or $(MINUTES),60)

soak: install  ## real training under random faults (MINUTES=60 SEED=1), compared with an uninterrupted run
	$(BIN)/ckptd drill --minutes $(or $(MINUTES),60) --seed $(or $(SEED),1)

diagrams: install  ## draw docs/machines.md from the transition tables
	$(BIN)/python -m tests.diagrams --write

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
