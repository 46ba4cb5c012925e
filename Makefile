# A machine with Python ≥ 3.10 and make is enough: every target makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH ?= .venv-bench
LOWEST ?= .venv-lowest
DATA ?= folder:data/cifar10
TIME_BUDGET ?= 3600
# Each process takes half of the tests, and of the other's what is left when it is done.
SUITE = -m pytest --numprocesses auto --dist worksteal --durations 25
PYTEST = $(BIN)/python $(SUITE)
QUICK = $(addprefix tests/test_,$(addsuffix .py,architecture balls packaging pixels schedules selection))
# Most of what is installed is never imported; what is, is compiled then, and kept.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL = -m pip install --quiet --no-compile

.PHONY: help demo quick test test-all check hooks lowest bench reproduce tables docs wheel release clean

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*##/\1 #/p' Makefile | awk -F ' # *' '{ printf "make %-9s %s\n", $$1, $$2 }'

demo: $(READY)  ## three encoders on digits, attacked: under five minutes on two cores
	$(BIN)/python examples/quickstart.py --aa-images 20

quick: $(READY)  ## style, and the laws of the parts that train nothing: under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) --quiet $(QUICK) $(ARGS)

test: $(READY)  ## the suite's quick tests, in minutes; ARGS="tests/test_balls.py -k project" for any others
	$(PYTEST) $(or $(ARGS),-m "not slow and not heavy")

test-all: $(READY)  ## all of it: every chain of the papers, several processes, compiled encoders
	$(PYTEST) -m "" $(ARGS)

check: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

hooks: $(READY)  ## git runs style before a commit and types before a push
	$(BIN)/pre-commit install --hook-type pre-commit --hook-type pre-push

lowest: $(LOWEST)/.ready  ## the suite under the lowest versions that pyproject.toml admits
	$(LOWEST)/bin/python $(SUITE) $(ARGS)

bench: $(BENCH)/.ready  ## how fast, beside other libraries: under 15 minutes on two cores
	$(BENCH)/bin/python benchmarks/speed.py

reproduce: $(READY)  ## the methods on CIFAR-10 at equal cost, for TIME_BUDGET seconds; again goes on
	$(BIN)/python benchmarks/papers.py equal_cifar --data $(DATA) --probes advcl,own --seeds 2 \
		--time-budget $(TIME_BUDGET)

tables: $(READY)  ## write the READMEs' and docs' tables anew from benchmarks/results/
	$(BIN)/python benchmarks/tables.py

docs: $(VENV)/.docs  ## docs/_build/index.html, and its links checked
	$(BIN)/python -m sphinx --fail-on-warning --quiet docs docs/_build
	$(BIN)/python docs/check_links.py docs/_build

wheel: $(READY)  ## dist/: sdist and wheel, their metadata and the links of their page checked
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python docs/check_links.py dist/*.whl

release:  ## the same of what is committed, under a version that the changelog closes
	@test -z "$$(git status --porcelain)" || \
		{ git status --short; echo "release: commit or remove these first" >&2; exit 1; }
	@! sed -n '/^## \[Unreleased\]/,/^## \[[0-9]/p' CHANGELOG.md | grep --quiet '^- ' || \
		{ echo "release: in CHANGELOG.md give what is [Unreleased] its version" >&2; exit 1; }
	$(MAKE) check test wheel ARGS=tests

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --upgrade pip
	$(BIN)/python $(PIP_INSTALL) --editable ".[dev]"
	touch $@

$(VENV)/.docs: $(READY)
	$(BIN)/python $(PIP_INSTALL) --editable ".[docs]"
	touch $@

# torchattacks pins a requests of 2020; it runs without it.
$(BENCH)/.ready: pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python $(PIP_INSTALL) --upgrade pip
	$(BENCH)/bin/python $(PIP_INSTALL) --editable ".[all,bench]"
	$(BENCH)/bin/python $(PIP_INSTALL) --no-deps torchattacks
	touch $@

# Direct dependencies at their floors first; what tests need besides keeps to them.
$(LOWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python $(PIP_INSTALL) uv
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--extra all pyproject.toml --output-file $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python \
		--requirement $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --editable ".[dev]" \
		--constraint $(LOWEST)/requirements.txt
	touch $@

clean:  ## the environments and runs/ are gone
	rm -rf $(VENV) $(BENCH) $(LOWEST) runs dist
