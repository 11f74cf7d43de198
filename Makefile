# `make chat` talks to the small model; `make test` runs every test, `make test-fast` those for daily
# work. Each makes its virtual environment and installs what it needs, if that is missing.

PYTHON ?= python3
# Colab's Python, where this machine has it.
PYTHONS_LIKE_COLAB := python3.13 $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python3.13)
COLAB_PYTHON ?= $(firstword $(foreach p,$(PYTHONS_LIKE_COLAB),$(shell "$(p)" -c pass 2>/dev/null && echo "$(p)")) $(PYTHON))
VENV := .venv
COLAB := .venv-colab
# Without this hqq compiles CUDA code while it is installed, where there is a CUDA compiler.
export DISABLE_CUDA := 1
PIP := -m pip install --quiet --disable-pip-version-check
PYTEST := $(VENV)/bin/python -m pytest -n 2
PYTEST_COLAB := $(COLAB)/bin/python -m pytest -n 2
NOTEBOOKS := --nbmake --nbmake-timeout=300 notebooks
# The tests in which arrays of small dtypes meet numbers of Python.
ARRAYS := tests/analysis tests/trace tests/plots tests/notebook/test_xray.py tests/notebook/test_stepper.py
# The browser tests run JupyterLab in this browser, on both package sets, with one worker for each.
export CHROMIUM ?= /usr/bin/chromium
CHROMIUM_PACKAGES := chromium fonts-dejavu-core
# The tests that run; `make test-all` runs the full matrices too.
SELECT := not full

.PHONY: chat test test-fast test-all notebooks readme figures lint chromium clean

chat: $(VENV)/ready
	@$(VENV)/bin/python -m moe_colab chat $(ARGS)

test test-fast: export HF_HUB_OFFLINE := 1
# Tests and notebook kernels share few cores: with more threads they would wait for each other.
test test-fast: export OMP_NUM_THREADS := 1
# The last lines run, on Colab's package set, the tests that depend on the versions of packages, and
# those of arrays once more with the newest numpy, which a plain pip install brings.
test: lint chromium $(COLAB)/ready
	$(PYTEST) -m "$(SELECT) and not browser"
	$(PYTEST) $(NOTEBOOKS)
	$(PYTEST) -m "$(SELECT) and browser" --dist loadgroup
	@$(COLAB)/bin/python -c 'import platform; print("On Colab'"'"'s package set, Python", platform.python_version())'
	$(PYTEST_COLAB) -m "$(SELECT) and colab and not browser"
	PYTHONPATH=$(COLAB)/newest-numpy $(PYTEST_COLAB) -m "$(SELECT) and not browser" $(ARRAYS)

# Lint and the quick tests, on the newest packages alone: under 4 minutes on 2 cores.
test-fast: lint
	$(PYTEST) -m "not full and not slow and not browser"

test-all:
	$(MAKE) test SELECT="(full or not full)"

# Writes the badges and the setup cell into every notebook.
notebooks: $(VENV)/ready
	$(VENV)/bin/python notebooks/stamp.py

# Writes the measured numbers into README.md and assets/benchmarks/README.md.
readme: $(VENV)/ready
	$(VENV)/bin/python assets/benchmarks/tables.py

# Draws the figures above the notebooks, from assets/benchmarks and assets/traces.
figures: $(VENV)/ready
	$(VENV)/bin/python assets/figures/draw.py

lint: $(VENV)/ready-to-test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

# The browser tests are skipped where it is missing; with CI=true they fail then.
chromium:
	-@test -x $(CHROMIUM) || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || { \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends $(CHROMIUM_PACKAGES) >/dev/null; }

clean:
	rm -rf $(VENV) $(COLAB) build *.egg-info

$(VENV)/ready: requirements.txt constraints.txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/ready-to-test: $(VENV)/ready requirements-dev.txt
	$(VENV)/bin/python $(PIP) -c constraints.txt -r requirements-dev.txt playwright
	touch $@

$(COLAB)/ready: requirements.txt requirements-dev.txt constraints-colab.txt pyproject.toml
	test -x $(COLAB)/bin/python || "$(COLAB_PYTHON)" -m venv $(COLAB)
	$(COLAB)/bin/python $(PIP) -c constraints-colab.txt -e . -r requirements-dev.txt
	rm -rf $(COLAB)/newest-numpy
	$(COLAB)/bin/python $(PIP) --no-deps --target $(COLAB)/newest-numpy numpy
	touch $@
