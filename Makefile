# `make sweep` on a fresh machine is the first thing a new user runs; `make check test long-tests` is what CI runs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Tests that start no Ray run in so many processes.
PROCESSES ?= 2

.PHONY: sweep install check lint docs fast-tests test long-tests gpu-tests chaos fuzz clean

sweep: $(INSTALLED)
	$(BIN)/thaw sweep search_spaces/presets/digits.yaml --new

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

# `make check test` runs the fast tests once.
check: lint docs fast-tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# build/docs/index.html; a link that leads nowhere is an error.
docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs

fast-tests: $(INSTALLED)
	$(BIN)/pytest -n $(PROCESSES) -m 'not slow and not ray and not gpu and not fuzz'

test: fast-tests
	$(BIN)/pytest -n $(PROCESSES) -m 'slow and not long and not ray and not gpu and not fuzz'
	$(BIN)/pytest -m 'ray and not long and not gpu'

# Whole sweeps of every kind, what machines and people do to them, and what takes minutes: an hour on two cores. CI runs as
# many as it has time for, and says which it left out.
long-tests: $(INSTALLED)
	$(BIN)/pytest -rs -n $(PROCESSES) -m 'long and not ray and not gpu and not fuzz'
	$(BIN)/pytest -rs -m 'long and ray and not gpu'

# Random faults for so many minutes; not part of `make test`.
MINUTES ?= 10
chaos: $(INSTALLED)
	$(BIN)/python tests/chaos.py --minutes $(MINUTES)

# On a machine with a GPU: what only one can show, and there what training promises on a CPU.
gpu-tests: $(INSTALLED)
	$(BIN)/pytest -m gpu
	THAW_TEST_DEVICE=cuda:0 $(BIN)/pytest tests/training -m 'not ray and not gpu and not fuzz'

# Specs of every kind, another set of them each time; not part of `make test`.
SPECS ?= 20000
fuzz: $(INSTALLED)
	$(BIN)/pytest -m fuzz
	$(BIN)/python tests/fuzz.py --specs $(SPECS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
