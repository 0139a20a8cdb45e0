# `make` sets everything up by itself: the targets below make .venv first, unless a virtual environment is active.
PYTHON ?= python3
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
READY := $(VENV)/.selfnpo-ready
DOCS_READY := $(VENV)/.selfnpo-docs-ready
PROJECTS := $(wildcard packages/*/pyproject.toml)
JOBS ?= 2
PYTHONS ?= 3.10 3.13
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo demo-image test test-fast test-faults test-core test-pythons check check-lint check-format check-types check-imports docs hooks dist setup clean
.DEFAULT_GOAL := demo

setup: $(READY)

$(READY): constraints.txt requirements-dev.txt $(PROJECTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -r requirements-dev.txt \
		-e packages/selfnpo-core -e packages/selfnpo-image -e packages/selfnpo-video
	$(BIN)/python -m pip download -q --no-deps -c constraints.txt -d $(VENV)/wheels torch-fidelity  # see tests/fidelity.py
	touch $@

demo: setup  ## train negative weights for the shipped video model, sample with and without, measure (a few minutes)
	$(BIN)/selfnpo-video demo

demo-image: setup  ## the same for the shipped picture model
	$(BIN)/selfnpo-image demo

test: setup  ## every test
	$(PYTEST) -q -n $(JOBS) --dist loadfile -m "not exhaustive"

test-fast: setup  ## what takes under five minutes
	$(PYTEST) -q -n $(JOBS) --dist loadfile -m "not slow and not exhaustive"

test-faults: setup  ## engines, kills, and all else that takes minutes
	$(PYTEST) -v --no-header --durations=0 tests/tools/test_engines.py tests/tools/test_faults.py \
		tests/tools/test_recipes.py tests/tools/test_recipe_runs.py
	$(PYTEST) -q -n $(JOBS) --dist loadfile -m exhaustive tests/core tests/image tests/video \
		tests/tools/test_compare_methods.py tests/tools/test_poor_places.py tests/tools/test_random_model.py

test-core: setup  ## the wheels, and what is fast in core
	$(PYTEST) -q -n $(JOBS) --dist loadfile tests/tools/test_wheels.py
	$(PYTEST) -q -n $(JOBS) --dist loadfile -m "not slow and not exhaustive" tests/core

test-pythons:  ## the same under PYTHONS, each in its .venv-VERSION; on Linux each with torch for CUDA, some GB
	.ci/pythons $(PYTHONS)

check: setup  ## lint, format, types (strict on the mathematics), import arrows
	@$(MAKE) --no-print-directory check-lint check-format check-types check-imports

check-lint:
	$(BIN)/ruff check .

check-format:
	$(BIN)/ruff format --check .

check-types:
	$(BIN)/mypy

check-imports:
	$(BIN)/lint-imports

docs: setup $(DOCS_READY)  ## the documentation, in build/docs: open build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

$(DOCS_READY): constraints.txt requirements-docs.txt
	$(BIN)/python -m pip install -q -c constraints.txt -r requirements-docs.txt
	touch $@

hooks: setup  ## the same before each commit, by pre-commit
	$(BIN)/pre-commit install

dist: setup  ## the three wheels
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist $(dir $(PROJECTS))

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
