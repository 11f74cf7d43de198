# Two commands do everything: `make chat` talks to the small model, `make test` runs every test.
# Each makes its virtual environment if it is missing and installs what it needs.

PYTHON ?= python3
VENV := .venv
COLAB := .venv-colab
PIP := -m pip install --quiet --disable-pip-version-check
PYTEST := $(VENV)/bin/python -m pytest -n 2
PYTEST_COLAB := $(COLAB)/bin/python -m pytest -n 2
# What depends on the version of transformers.
COLAB_TESTS := tests/test_equality.py tests/test_counts.py tests/test_engine.py tests/test_loading.py \
	tests/test_packing.py tests/test_chat.py tests/test_hub.py

.PHONY: chat test test-all lint clean

chat: $(VENV)/ready
	@$(VENV)/bin/python -m moe_colab chat $(ARGS)

test: lint $(COLAB)/ready
	$(PYTEST) -m "not full"
	$(PYTEST) --nbmake --nbmake-timeout=300 notebooks
	$(PYTEST_COLAB) -m "not full" $(COLAB_TESTS)

test-all: lint $(COLAB)/ready
	$(PYTEST)
	$(PYTEST) --nbmake --nbmake-timeout=300 notebooks
	$(PYTEST_COLAB) $(COLAB_TESTS)

lint: $(VENV)/ready-to-test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

clean:
	rm -rf $(VENV) $(COLAB) build *.egg-info

$(VENV)/ready: requirements.txt constraints.txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/ready-to-test: $(VENV)/ready requirements-dev.txt
	$(VENV)/bin/python $(PIP) -c constraints.txt -r requirements-dev.txt
	touch $@

$(COLAB)/ready: requirements.txt requirements-dev.txt constraints-colab.txt pyproject.toml
	test -x $(COLAB)/bin/python || $(PYTHON) -m venv $(COLAB)
	$(COLAB)/bin/python $(PIP) -c constraints-colab.txt -e . -r requirements-dev.txt
	touch $@
