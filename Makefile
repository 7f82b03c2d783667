# Every target works from a bare clone: it makes .venv with the pinned dependencies first, once.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
ARGS ?=
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
# Temporary files stay beside the checkout, since /tmp is often a small memory disk.
export TMPDIR := $(CURDIR)/.tmp
export TOKENIZERS_PARALLELISM := false
# Tests start many processes; with compiled modules kept, each starts a second or more earlier, and pytest collects in half the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo real-decoder llama-cpp test test-thorough test-slow test-lowest test-newest test-kernel lint size format bench docs site release gpu-check clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' Makefile | expand -t 12

install: $(READY)  ## .venv with the pinned dependencies and this package

# PIP_CONSTRAINT takes the place of a constraint in this machine's own pip settings, which -c would only add to.
$(READY): pyproject.toml constraints.txt
	@mkdir -p $(TMPDIR)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The pinned versions need Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=python3.11")'
	@echo "Installing the pinned dependencies into $(VENV) (once; a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@PIP_CONSTRAINT=constraints.txt $(PY) -m pip install --disable-pip-version-check --no-compile -e '.[dev]' | sed -un 's/^Collecting \([^ ]*\).*/  \1/p; /^Installing/p; /^Successfully built/p'
	@$(PY) -m scripts.dev.tools.class_stubs
	@touch $@

# The types of the Long classes, for editors and mypy; not in git.
STUBS := hf_longattn/families/__init__.pyi
$(STUBS): $(READY) scripts/dev/tools/class_stubs.py $(wildcard hf_longattn/families/*.py hf_longattn/modeling/*.py)
	@$(PY) -m scripts.dev.tools.class_stubs
	@touch $@

demo: $(READY)  ## the windows of Gemma 3, a conversion of all-MiniLM-L6-v2, and long questions (7 minutes on 2 cores)
	@$(PY) -m scripts.dev.real --decoder || true  # without it, the demo leaves its first step out
	@$(PY) scripts/demo.py $(ARGS)

# For studies and slow tests of decoders, under the Gemma Terms of Use (ai.google.dev/gemma/terms).
real-decoder: $(READY)  ## Gemma 3 270M in build/real/gemma-3-270m: downloads 240 MB and takes two minutes, once
	@$(PY) -m scripts.dev.real --decoder

llama-cpp: $(READY)  ## llama.cpp in build/real/llama.cpp, for a slow test: downloads 72 MB, once; Linux on x86-64
	@$(PY) -m scripts.dev.real --llama-cpp

# The versions that pyproject.toml declares to be enough, each as old as it allows; linux wheels of torch bring CUDA's libraries along.
# Copied, since a checkpoint's file that is a hard link into uv's cache is refused.
LOWEST := .venv-lowest
test-lowest: $(READY)  ## all tests but the slow ones on the oldest versions that pyproject.toml allows (downloads gigabytes)
	$(VENV)/bin/uv pip compile -q --python $(PY) --resolution lowest-direct --extra dev pyproject.toml -o $(LOWEST).txt
	$(VENV)/bin/pytest -q -p no:cacheprovider -k resolver tests/test_core_dependencies.py
	$(VENV)/bin/uv venv -q --clear --python $(PY) $(LOWEST)
	UV_LINK_MODE=copy $(VENV)/bin/uv pip install -q --python $(LOWEST)/bin/python -r $(LOWEST).txt
	$(VENV)/bin/uv pip install -q --python $(LOWEST)/bin/python --no-deps -e .
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(LOWEST)/bin/pytest -n $(WORKERS) -m "not slow" -p no:cacheprovider $(ARGS)

# As `pip install` resolves them today, without a constraint in this machine's own pip settings. Run before a release: a newer transformers
# may rename what the package reads.
NEWEST := .venv-newest
test-newest:  ## all tests but the slow ones on the newest versions that pyproject.toml allows (downloads gigabytes)
	@mkdir -p $(TMPDIR)
	$(PYTHON) -m venv --clear $(NEWEST)
	PIP_CONSTRAINT=/dev/null $(NEWEST)/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(NEWEST)/bin/pytest -n $(WORKERS) -m "not slow and not thorough" -p no:cacheprovider $(ARGS)

# kernels loads attention by a string of the Hub. This version fits transformers 5.20 to 5.22; both lie beside the packages of .venv.
KERNEL := .kernel
KERNEL_PACKAGES := transformers==5.22.2 kernels==0.17.2 sigstore tomlkit
test-kernel: $(READY)  ## the Hub's kernel in every program that takes it by its string (downloads 80 MB)
	$(PY) -m pip install -q --disable-pip-version-check --upgrade --no-deps --target $(KERNEL) $(KERNEL_PACKAGES)
	$(PY) -m pip install -q --disable-pip-version-check --upgrade --target $(KERNEL)/serving fastapi uvicorn starlette openai
	PYTHONPATH=$(KERNEL):$(KERNEL)/serving OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -p no:cacheprovider tests/kernel $(ARGS)

lint: $(STUBS)  ## ruff, mypy, and the project's size
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) -m scripts.dev.tools.ceiling

size: $(READY)  ## fails if the project has grown; for maintainers and continuous integration
	@$(PY) -m scripts.dev.tools.ceiling --fail

format: $(READY)  ## lay the code out, mend what ruff can mend, and write the types of the Long classes
	$(PY) -m scripts.dev.tools.class_stubs
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# One thread per worker: the workers are the parallelism. A worker begins with neighbouring tests, which share fixtures, and takes over others
# when it is done. Lint runs next to the tests; what it finds is shown after them, and fails the target.
# Tests start many processes, whose waiting threads sleep instead of spinning; a training alone is 1.6 times slower with that.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(VENV)/bin/pytest -n $(WORKERS) --dist worksteal
test: $(READY)  ## lint and the tests that take seconds each
	@mkdir -p $(TMPDIR)
	@$(MAKE) --no-print-directory lint >$(TMPDIR)/lint.txt 2>&1 & lint=$$!; failed=0; \
	$(PYTEST) -m "not slow and not thorough" $(ARGS) || failed=$$?; \
	wait $$lint || { cat $(TMPDIR)/lint.txt; failed=1; }; \
	exit $$failed

test-thorough: $(READY)  ## the other tests that take seconds each, before a release and after a change in many folders
	$(PYTEST) -m "thorough and not slow" $(ARGS)

test-slow: $(READY)  ## every test, transformers' own suites included (takes hours)
	$(PYTEST) -o faulthandler_timeout=3600 $(ARGS)

# Timings count on a quiet machine only: nothing else may run. scripts/dev/results/commands.toml has the commands.
bench: $(READY)  ## make every benchmark's stored result anew, and the tables of the documents; ARGS=--studies adds trainings, which take days
	$(PY) -m scripts.dev.benchmarks.everything $(ARGS)
	$(MAKE) docs

docs: $(READY)  ## put the stored results and the registries into README.md and docs/
	$(PY) -m scripts.dev.tools.update_docs

# NOTEBOOKS=cache executes notebooks that have changed since the last time; without build/notebooks, all of them.
NOTEBOOKS ?= off
site: $(READY)  ## the documentation as a site, in build/site/docs/index.html; NOTEBOOKS=cache adds the notebooks' outputs (10 minutes once)
	$(PY) -m sphinx -W --keep-going -q -j $(if $(filter off,$(NOTEBOOKS)),auto,1) -D nb_execution_mode=$(NOTEBOOKS) -c docs . build/site
	@echo "Open build/site/docs/index.html in a browser."

release: $(STUBS)  ## the distributions in dist/, checked and not uploaded
	$(PY) -m scripts.dev.tools.release

gpu-check: $(READY)  ## every mechanism on CUDA against float64, and timings, in six minutes
	$(PY) scripts/gpu_check.py $(ARGS)

clean:  ## the virtual environment, the caches and the demo's output
	rm -rf $(VENV) $(LOWEST) $(LOWEST).txt $(NEWEST) $(KERNEL) .tmp .mypy_cache .pytest_cache .ruff_cache .hypothesis demo_output runs build
