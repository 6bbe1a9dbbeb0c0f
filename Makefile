# `make help` lists the verbs; each sets up .venv first and reinstalls only when the pins change.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: help setup demo test check format clean
help:
	@echo "make demo    set up, then the whole road on a small dataset (5 minutes on 2 cores)"
	@echo "make test    set up, then all tests (about 25 minutes on 2 cores)"
	@echo "make check   lint, formatting and types"
	@echo "make format  rewrite the code as the linter wants it"
	@echo "make clean   remove what the demo made (the environment stays)"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/farreach demo

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf farreach-demo
