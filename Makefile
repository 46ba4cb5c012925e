# A machine with Python ≥ 3.10 and make is enough: every target makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH ?= .venv-bench
PYTEST = $(BIN)/python -m pytest --numprocesses auto --dist loadfile

.PHONY: demo test test-all check bench tables docs clean

demo: $(READY)  ## three encoders on digits, attacked: under five minutes on two cores
	$(BIN)/python examples/quickstart.py --aa-images 20

test: $(READY)  ## the suite, without what takes minutes
	$(PYTEST)

test-all: $(READY)  ## all of it: every chain of the papers, several processes, compiled encoders
	$(PYTEST) -m ""

check: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BENCH)/.ready  ## how fast, beside other libraries: under 15 minutes on two cores
	$(BENCH)/bin/python benchmarks/speed.py

tables: $(READY)  ## write the READMEs' and docs' tables anew from benchmarks/results/
	$(BIN)/python benchmarks/tables.py

docs: $(READY)  ## docs/_build/index.html
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/python -m sphinx --fail-on-warning --quiet docs docs/_build
	$(BIN)/python docs/check_links.py docs/_build

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# torchattacks pins a requests of 2020; it runs without it.
$(BENCH)/.ready: pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --upgrade pip
	$(BENCH)/bin/python -m pip install --quiet --editable ".[all,bench]"
	$(BENCH)/bin/python -m pip install --quiet --no-deps torchattacks
	touch $@

clean:
	rm -rf $(VENV) $(BENCH) runs
