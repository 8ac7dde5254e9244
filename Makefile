PYTHON ?= python3
BIN = .venv/bin

.PHONY: test slow check
test: .venv/test
	$(BIN)/python -m pytest

slow: .venv/test
	$(BIN)/python -m pytest -m slow

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# torch first, by its exact version: an open range takes a CUDA build of several gigabytes.
.venv/test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e '.[test]'
	touch $@
