# `make demo` runs the main job, `make test` passes the tests, `make docs` builds the site. Each sets up .venv itself.
PYTHON ?= python3
# Processes that share the tests; each takes up to 6 GiB.
JOBS ?= 2
SHARED := -n $(JOBS) --dist loadfile --no-loadscope-reorder
VENV := .venv
BIN := $(VENV)/bin

# The interpreter of 3.12-newest, say: pyenv's, though it may have chosen another, or a command.
version = $(firstword $(subst -, ,$1))
command = $(shell python$(version) -c 'print("python$(version)")' 2>/dev/null)
python = $(firstword $(or $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/$(version).*/bin/python$(version)),$(command)))

# Of PYTHON; most packages have left 3.10, which therefore gets versions of its own.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CONSTRAINTS := $(firstword $(wildcard constraints/python$(VERSION).txt) constraints/main.txt)
# Octo's versions and torch can be had on these Pythons only: on PYTHON, or else on the first of them that is here.
OCTO := 3.11 3.10 3.12
TORCH := 3.11 3.12 3.13
one_of = $(or $(if $(filter $(VERSION),$1),$(PYTHON)),$(firstword $(foreach each,$1,$(call python,$(each)))))
not_tested = printf '\n!!! NOT TESTED: %s, which is not here. !!!\n' '$1' >&2
LOWEST := .venv-lowest
PARITY := .venv-parity

.PHONY: demo test docs lowest newest renew torture generations lint install clean

demo: $(VENV)/installed
	$(BIN)/maps-vla demo

test: $(VENV)/installed $(if $(call one_of,$(TORCH)),$(PARITY)/installed) lint docs
	$(if $(call one_of,$(TORCH)),PARITY_PYTHON=$(abspath $(PARITY)/bin/python)) $(BIN)/python -m pytest $(SHARED)
	$(MAKE) lowest newest
	$(if $(call one_of,$(TORCH)),,@$(call not_tested,torch and transformers with a Python of $(TORCH)))

ifneq ($(call one_of,$(OCTO)),)
lowest: $(LOWEST)/installed
	PYTHONPATH=. $(LOWEST)/bin/python -m pytest -q $(SHARED) -W ignore::DeprecationWarning \
		tests/maps_optax tests/octo_integration/clients/test_octo.py
else
lowest:
	@$(call not_tested,the oldest versions with a Python of $(OCTO))
endif

# The long form of tests that `test` runs briefly: thousands of random trees and damaged files, a million steps, a thousand
# million elements, a hundred kills, two hours in a loop.
TORTURE := $(addprefix tests/maps_optax/test_,fuzz.py refusals.py torture.py extremes.py) \
	tests/octo_integration/data/test_bad_data.py tests/octo_integration/weights/test_bad_weights.py \
	tests/octo_integration/test_soak.py \
	tests/octo_integration/train/test_crashes.py tests/octo_integration/processes/test_lifeline.py
torture: $(VENV)/installed
	TORTURE=1 $(BIN)/python -m pytest -s $(TORTURE)

# The core's tests on every generation of JAX that it promises to run on; a Python that is not there is an error.
GENERATIONS := 3.10-lowest 3.11-middle 3.12-newest 3.13-newest
generations: $(GENERATIONS:%=.venv-python%/passed)

# Python 3.11 does not get the newest JAX. So `test` also runs, with every newer Python that is here, the core's tests and,
# with the newest of them, those of the integration that JAX, Flax and Orbax can break: model, weights, step, loop and
# checkpoints.
NEWEST := $(filter %-newest,$(GENERATIONS))
JOBS_newest := $(SHARED)
INTEGRATION := $(addprefix tests/octo_integration/,model/test_vla.py \
	weights/test_store.py train/test_step.py state/test_checkpoint.py \
	train/test_loop.py::test_sigterm_saves_and_the_same_command_resumes_bit_for_bit)
FOUND = $(strip $(foreach one,$(NEWEST),$(if $(call python,$(one)),$(one))))
newest:
	$(if $(FOUND),$(MAKE) $(FOUND:%=.venv-python%/passed))
	@$(foreach one,$(filter-out $(FOUND),$(NEWEST)),$(call not_tested,the newest JAX with Python $(call version,$(one)));)

.PRECIOUS: .venv-python%/installed
.venv-python%/installed: constraints/lowest.txt constraints/middle.txt constraints/newest.txt
	$(or $(call python,$*),python$(call version,$*)) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --upgrade pip
	$(@D)/bin/python -m pip install -q -r constraints/$(lastword $(subst -, ,$*)).txt
	touch $@

# All newer Pythons have one JAX: the last runs what its compiler optimised, the others what was compiled in half the time.
.venv-python%/passed: .venv-python%/installed FORCE
	$(if $(filter-out $(lastword $(FOUND)),$(filter $*,$(FOUND))),JAX_DISABLE_MOST_OPTIMIZATIONS=1) PYTHONPATH=. \
		$(@D)/bin/python -m pytest -q -W ignore::DeprecationWarning -W "ignore:Sharding info not" tests/maps_optax \
		$(JOBS_$(lastword $(subst -, ,$*))) $(if $(filter $*,$(lastword $(FOUND))),$(INTEGRATION))

# Makes constraints/newest.txt anew, of the versions that the index has today.
renew:
	$(call python,$(lastword $(NEWEST))) -m venv --clear .venv-renew
	.venv-renew/bin/python -m pip install -q '.[vla,dev]'
	(grep '^#' constraints/newest.txt; .venv-renew/bin/python -m pip freeze --exclude maps_optax) > .venv-renew/newest
	mv .venv-renew/newest constraints/newest.txt

FORCE:

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, from the guides and docstrings; a warning is an error. docs/_build/index.html is its front page.
docs: $(VENV)/installed
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . docs/_build

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e '.[vla,sim,libero,serve,convert,dev,docs]'
	touch $@

# The oldest versions that the core promises to run on; Octo's own.
$(LOWEST)/installed: pyproject.toml constraints/lowest.txt
	$(call one_of,$(OCTO)) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q --upgrade pip
	$(LOWEST)/bin/python -m pip install -q -r constraints/lowest.txt
	touch $@

# torch and transformers, whose models ours are compared with, and openpi's client; apart, because nothing else needs them.
# The client asks for numpy below 2, and works without.
$(PARITY)/installed: constraints/parity.txt
	$(call one_of,$(TORCH)) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install -q --upgrade pip
	$(PARITY)/bin/python -m pip install -q -r constraints/parity.txt
	$(PARITY)/bin/python -m pip install -q --no-deps openpi-client==0.1.2
	touch $@

clean:
	rm -rf docs/_build $(VENV) $(LOWEST) $(PARITY) .venv-python* .venv-renew .pytest_cache .mypy_cache .ruff_cache
