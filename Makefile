# The same commands as in README.md and scripts/check.py, under short names.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: all setup fix lint test docs check benchmark

all: setup check

setup:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q moesize

fix:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/build_docs.py

lint:
	$(BIN)/python scripts/check.py lint

test:
	$(BIN)/python -m pytest -n auto

docs:
	$(BIN)/python scripts/build_docs.py

check:
	$(BIN)/python scripts/check.py

benchmark:
	$(BIN)/python scripts/benchmark.py
