# `make demo` runs the main job, `make test` passes the tests, `make docs` builds the site. Each sets up .venv itself.
PYTHON ?= python3
# Processes that share the tests; each takes up to 4 GiB.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
PARITY := .venv-parity

.PHONY: demo test docs torture generations lint install clean

# glibc keeps the heap between steps: fresh pages for every step's buffers are dear on a CPU.
demo: export MALLOC_ARENA_MAX = 1
demo: export MALLOC_MMAP_MAX_ = 0
demo: export MALLOC_TRIM_THRESHOLD_ = 100000000000
demo: $(VENV)/installed
	$(BIN)/maps-vla demo

test: $(VENV)/installed $(LOWEST)/installed $(PARITY)/installed lint docs
	PARITY_PYTHON=$(abspath $(PARITY)/bin/python) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
	PYTHONPATH=. $(LOWEST)/bin/python -m pytest -q -W ignore::DeprecationWarning tests/maps_optax \
		tests/octo_integration/clients/test_octo.py

# The long form of tests that `test` runs briefly: thousands of random trees and damaged files, a million steps, a thousand
# million elements, a hundred kills, two hours in a loop.
TORTURE := $(addprefix tests/maps_optax/test_,fuzz.py refusals.py torture.py extremes.py) \
	tests/octo_integration/data/test_bad_data.py tests/octo_integration/test_soak.py \
	$(addprefix tests/octo_integration/train/test_,crashes.py lifeline.py)
torture: $(VENV)/installed
	TORTURE=1 $(BIN)/python -m pytest -s $(TORTURE)

# The core's tests on every generation of JAX that it promises to run on; a Python that is not there is an error.
GENERATIONS := 3.10-lowest 3.11-middle 3.12-newest 3.13-newest
generations: $(GENERATIONS:%=.venv-core-%/passed)

.venv-core-%/installed: constraints/main.txt constraints/lowest.txt constraints/middle.txt constraints/newest.txt
	python$(firstword $(subst -, ,$*)) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --upgrade pip
	$(@D)/bin/python -m pip install -q -r constraints/$(lastword $(subst -, ,$*)).txt
	touch $@

.venv-core-%/passed: .venv-core-%/installed FORCE
	PYTHONPATH=. $(@D)/bin/python -m pytest -q -W ignore::DeprecationWarning -W "ignore:Sharding info not" tests/maps_optax

FORCE:

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, from the guides and docstrings; a warning is an error. docs/_build/index.html is its front page.
docs: $(VENV)/installed
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . docs/_build

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints/main.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints/main.txt -e '.[vla,sim,dev,docs]'
	touch $@

# The oldest versions that the core promises to run on; Octo's own.
$(LOWEST)/installed: pyproject.toml constraints/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q --upgrade pip
	$(LOWEST)/bin/python -m pip install -q -r constraints/lowest.txt
	touch $@

# torch and transformers, whose models ours are compared with; apart, because nothing else needs them.
$(PARITY)/installed: constraints/parity.txt
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install -q --upgrade pip
	$(PARITY)/bin/python -m pip install -q -r constraints/parity.txt
	touch $@

clean:
	rm -rf docs/_build $(VENV) $(LOWEST) $(PARITY) .venv-core-* .pytest_cache .mypy_cache .ruff_cache
