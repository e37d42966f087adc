# SPDX-License-Identifier: Apache-2.0
# The commands of this repository; `make` alone lists them. Nothing is installed outside .venv.
BIN := .venv/bin
TESTS := $(BIN)/python -m pytest
FAST := -m "not slow and not live"
# Two processes: as many as the smallest machine has cores. `make test WORKERS=0` runs in one, for a debugger.
WORKERS := 2

.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow check fmt docs bench soak fuzz lock clean
.PHONY: check-format check-lint check-types check-imports check-docs

help:
	@echo "make run        set up what is missing, then start a whole network and ask it one question"
	@echo "make test       set up what is missing, then run the fast tests (under 8 minutes)"
	@echo "make test-slow  the long ones: kill lists, outages, networks of processes"
	@echo "make check      format, lint, strict types, import rules, docs"
	@echo "make bench      the benchmarks, in their quick form; writes docs/benchmarks.md"
	@echo "make soak       10 minutes of load, a restart, overload; every book held against every other (SOAK_SECONDS=60 for less)"
	@echo "make fuzz       fuzz every parser, 5 minutes each (FUZZ_SECONDS=60 for less)"
	@echo "make fmt        format the code"
	@echo "make docs       check links, anchors and commands in the documents"
	@echo "make lock       resolve the dependencies anew"
	@echo "make clean      remove .venv and everything the tools left"

setup:
	@sh scripts/setup.sh

run: setup
	@exec $(BIN)/bombyx up $(ARGS)

test: setup
	$(TESTS) $(FAST) -n $(WORKERS) --dist loadscope $(ARGS)

test-slow: setup
	$(TESTS) -m "slow and not live" $(ARGS)

# Every step runs, so that one look shows all that is wrong; any failure fails the whole.
check: setup
	@$(MAKE) --keep-going --no-print-directory check-format check-lint check-types check-imports check-docs

check-format:
	$(BIN)/ruff format --check .
check-lint:
	$(BIN)/ruff check .
check-types:
	$(BIN)/mypy
check-imports:
	$(BIN)/lint-imports
check-docs:
	$(BIN)/python scripts/check_docs.py

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

docs: setup check-docs

bench: setup
	$(BIN)/python bench/_document.py $(ARGS)

soak: setup
	SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python bench/soak.py $(ARGS)

# Atheris is no part of the locked environment: it is fetched beside it, when asked for.
FUZZ_SECONDS := 300
fuzz: setup
	@test -d build/fuzz/lib || $(BIN)/python -m pip install -q --target build/fuzz/lib atheris
	PYTHONPATH=build/fuzz/lib $(BIN)/python fuzz/parsers.py all $(FUZZ_SECONDS) $(ARGS)

lock: setup
	@sh scripts/lock.sh

clean:
	rm -rf .venv .lock-venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
