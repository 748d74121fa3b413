# make demo, make test: all they need is Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench clean help

help:
	@echo "make demo   un-read three Oz books from the bundled model (5 to 15 minutes once installed, then: $(RUN)/8-report/index.html)"
	@echo "make test   run the tests"
	@echo "make lint   ruff and mypy --strict"
	@echo "make bench  speed and memory beside other ways to do it (long; benchmarks/speed.py)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	@touch $@

$(DEV): $(READY)
	$(PIP) --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/forgetkit demo --out $(RUN)

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(DEV)
	$(BIN)/ruff check src tests benchmarks recipes
	$(BIN)/ruff format --check src tests benchmarks recipes
	$(BIN)/mypy

bench: $(DEV)
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) build dist
