# `make help` lists what there is. Everything runs in .venv, which install.sh makes and keeps current.

SHELL := /bin/sh
.DEFAULT_GOAL := help
BIN := .venv/bin
CODE := b2fs tests bench

.PHONY: help
help: ## show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: run
run: install ## mount a sample bucket at ./static/data (B2_ENABLED=true and your keys: your own) until Ctrl-C
	@exec $(BIN)/b2fs try

.PHONY: test
test: install-test ## run all tests, real mounts included
	@$(BIN)/pytest -n 3 --dist loadfile

.PHONY: stream
stream: install-test ## 10 GiB in and out through limits of 256 MiB, watched from outside (minutes)
	@$(BIN)/python -m tests.mount.stream 10GiB 256MiB

.PHONY: mutants
mutants: install-test ## take each protection away in turn, and see its tests fail (ONLY=word: those rows)
	@$(BIN)/python -m tests.mutants $(ONLY)

TIME ?= 20m
SEED ?= $(shell date +%s)
.PHONY: soak
soak: install-test ## the workload under random faults and kills, then a full comparison (TIME=20m SEED=a number to repeat)
	@$(BIN)/python -m tests.soak --time $(TIME) --seed $(SEED)

.PHONY: programs
programs: TIME = 60s
programs: install-test ## git, SQLite, rsync, fio, … on a mount, the long form (TIME=60s for each stress test)
	@PROGRAMS_TIME=$(TIME) $(BIN)/pytest tests/programs

.PHONY: bench
bench: install-bench ## b2fs beside its peers: tables, bench/results.json and a chart (ARGS=--quick: less of it; ARGS=--help)
	@$(BIN)/python -m bench $(ARGS)

EXAMPLES ?= 2000
.PHONY: differential
differential: install-test ## random operations on a mount and on a plain directory must agree (EXAMPLES=2000 SEED=a number to repeat)
	@echo "SEED=$(SEED)"
	@EXAMPLES=$(EXAMPLES) SEED=$(SEED) $(BIN)/pytest -x -o faulthandler_timeout=0 tests/differential

.PHONY: check
check: lint test ## lint and test: what must pass before a commit

.PHONY: lint
lint: install-test ## format, lint, types, import contracts
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: install-test ## format the code, and mend what can be mended safely
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

.PHONY: clean
clean: ## remove what is made again; keeps the sample bucket and what is not uploaded yet (.b2fs-run)
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

.PHONY: install install-test install-bench
install:
	@./install.sh
install-test:
	@./install.sh --test
install-bench:
	@./install.sh --bench
