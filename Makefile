PYTHON ?= python3
VENV ?= .venv
# What `make test` runs, and how.
TESTS ?= tests
PYTEST_ARGS ?=
# How many games `make simulate` plays, from which seed on.
SEEDS ?= 1000
FIRST ?= 0
# For how many minutes `make stateful` plays, from the seed FIRST on.
MINUTES ?= 10

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
PACKAGE := setup.cfg pyproject.toml
FORMATTED := . bin/taskclient bin/taskadmin
TYPED := $(wildcard taskd twisted/plugins tests bench deploy examples/thumbnails)

.PHONY: run test simulate stateful lint format bench clean

run: $(VENV)/.run
	$(BIN)/twistd -n --pidfile= taskserver

test: $(VENV)/.test
	$(BIN)/python -m pytest -ra $(PYTEST_ARGS) $(TESTS)

simulate: $(VENV)/.test
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

stateful: $(VENV)/.test
	$(BIN)/python -m tests.stateful --minutes $(MINUTES) --first $(FIRST)

# The tests of tests/faults with their full counts: a line of JSON each, about half an hour in all.
faults: $(VENV)/.test
	$(BIN)/python -m tests.faults --full

lint: $(VENV)/.test
	$(BIN)/ruff format --check $(FORMATTED)
	$(BIN)/ruff check $(FORMATTED)
	$(BIN)/mypy $(TYPED)

format: $(VENV)/.test
	$(BIN)/ruff check --fix $(FORMATTED)
	$(BIN)/ruff format $(FORMATTED)

bench: $(VENV)/.test
	$(BIN)/python -m bench.throughput --tasks 20000 --clients 2

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

# The stamps lie inside the environment: they say when it was made and last installed into, and go with it.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "taskd needs Python 3.10 or newer; choose one with: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	    { echo "no virtual environment could be made; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.run: $(VENV)/.made $(PACKAGE)
	$(PIP) install --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.made $(PACKAGE)
	$(PIP) install --editable '.[test]'
	@touch $@ $(VENV)/.run
