# make demo: heat maps of the example pictures with the embedded model.  make test: the whole test suite.
# Both set up .venv by themselves; a second run reuses it.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test lint docs bench release-check clean help

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

# make bench: speed and memory on this machine, into bench-out/, for hours; a second run goes on.
# make bench QUICK=1: every script cut short, into bench-out/quick/, which shows that they run and no more.
BENCH_OUT := bench-out$(if $(QUICK),/quick)
BENCH_CUT := --repeats $(if $(QUICK),1,5)
BENCH_INFERENCE := $(if $(QUICK),--blocks 4 --size 224 --batches 1 2 --images 1 --epochs 1)
BENCH_STARTUP := $(if $(QUICK),--blocks 4)
BENCH_PREPROCESS := $(if $(QUICK),--pictures 12)
BENCH_GROWTH := $(if $(QUICK),--blocks 4 --sizes 224 336 --batches 1 2 --images 2 4 --classes 1 2)
BENCH_MAPS := $(if $(QUICK),--blocks 4)
BENCH_RUNTIMES := $(if $(QUICK),--runs 1 --images 1,--backbone tiny ViT-L-14-336 --images 1)
BENCH_SOAK := $(if $(QUICK),-n 60)
BENCH_METRICS := $(if $(QUICK),--maps 4)
BENCH_TRAIN := $(if $(QUICK),anomaly_clip --images 2 --size 112 --repeats 1)

bench: $(VENV)/.dev
	mkdir -p $(BENCH_OUT)
	$(BIN)/python benchmarks/preprocess.py $(BENCH_CUT) $(BENCH_PREPROCESS) --json $(BENCH_OUT)/preprocess.json
	$(BIN)/python benchmarks/startup.py $(BENCH_CUT) $(BENCH_STARTUP) --json $(BENCH_OUT)/startup.json
	$(BIN)/python benchmarks/inference.py $(BENCH_CUT) $(BENCH_INFERENCE) --json $(BENCH_OUT)/inference.json
	$(BIN)/python benchmarks/maps.py $(BENCH_CUT) $(BENCH_MAPS) --json $(BENCH_OUT)/maps.json
	$(BIN)/python benchmarks/growth.py $(BENCH_CUT) $(BENCH_GROWTH) -o $(BENCH_OUT)
	$(BIN)/python benchmarks/runtimes.py $(BENCH_RUNTIMES) --json $(BENCH_OUT)/runtimes.json
	$(BIN)/python benchmarks/soak.py $(BENCH_SOAK) --json $(BENCH_OUT)/soak.json
	$(BIN)/python benchmarks/metrics.py $(BENCH_METRICS) > $(BENCH_OUT)/metrics.txt
	$(BIN)/python benchmarks/train_epoch.py $(BENCH_TRAIN) > $(BENCH_OUT)/train_epoch.txt
	@echo "The figures are in $(BENCH_OUT)"

clean:
	rm -rf $(VENV) site dist demo-out .pytest_cache .mypy_cache .ruff_cache
