# make demo: heat maps of the example pictures with the embedded model.  make test: the whole test suite.
# Both set up .venv by themselves; a second run reuses it.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test lint docs release-check clean help

help:
	@sed -n 's/^# //p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || \
	  { echo "blemish needs Python 3.11 or newer: install it, or run make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.core $@

demo: $(VENV)/.core
	$(BIN)/blemish predict examples -o demo-out --save overlay,mask,map --overwrite
	@echo "The gallery is in demo-out/index.html"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict
	@echo "The site is in site/index.html"

release-check: $(VENV)/.dev
	$(BIN)/python tools/release_check.py

clean:
	rm -rf $(VENV) site dist demo-out .pytest_cache .mypy_cache .ruff_cache
