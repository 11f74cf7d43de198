# Two commands do everything: `make chat` talks to the small model, `make test` runs every test.
# Each makes its virtual environment if it is missing and installs what it needs.

PYTHON ?= python3
VENV := .venv
COLAB := .venv-colab
# hqq would compile CUDA code while it is installed; this tells it not to.
export DISABLE_CUDA := 1
PIP := -m pip install --quiet --disable-pip-version-check
PYTEST := $(VENV)/bin/python -m pytest -n 2
PYTEST_COLAB := $(COLAB)/bin/python -m pytest -n 2
NOTEBOOKS := --nbmake --nbmake-timeout=300 notebooks
# The browser tests: JupyterLab in this browser, on both package sets, one worker each.
export CHROMIUM ?= /usr/bin/chromium
CHROMIUM_PACKAGES := chromium fonts-dejavu-core
# What depends on the version of transformers.
COLAB_TESTS := tests/offload/test_equality.py tests/offload/test_counts.py tests/offload/test_experts.py tests/offload/test_load.py \
	tests/quantization/test_pack.py tests/chat/test_session.py tests/checkpoint/test_hub.py tests/notebook/test_chat_widget.py \
	tests/planner/test_catalogue.py tests/checkpoint/test_shards.py tests/notebook/test_setup.py tests/quantization/test_bits.py \
	tests/quantization/test_quantize.py tests/offload/test_lowbit_dense.py tests/evaluation/test_perplexity.py tests/evaluation/test_sensitivity.py \
	tests/quantization/test_kernels.py tests/plots/test_plots.py tests/notebook/test_quantize_widget.py tests/trace/test_trace.py tests/analysis/test_replay.py \
	tests/analysis/test_tables.py tests/analysis/test_routing_tables.py tests/plots/test_routing_figures.py tests/plots/test_trace_figures.py \
	tests/notebook/test_trace_widgets.py tests/bench/test_bench_paper.py tests/notebook/test_xray.py tests/notebook/test_stepper.py tests/notebook/test_explorer.py \
	tests/notebook/test_view.py tests/offload/test_read_text.py

# Which tests: `make test-all` runs the full matrices too.
SELECT := not full

.PHONY: chat test test-all notebooks figures lint chromium clean

chat: $(VENV)/ready
	@$(VENV)/bin/python -m moe_colab chat $(ARGS)

test: export HF_HUB_OFFLINE := 1
# Tests, and the kernels of notebooks, share few cores: with more threads they would wait for each other.
test: export OMP_NUM_THREADS := 1
test: lint chromium $(COLAB)/ready
	$(PYTEST) -m "$(SELECT) and not browser"
	$(PYTEST) $(NOTEBOOKS)
	$(PYTEST) -m "$(SELECT) and browser" --dist loadgroup
	$(PYTEST_COLAB) -m "$(SELECT) and not browser" $(COLAB_TESTS)

test-all:
	$(MAKE) test SELECT="(full or not full)"

# Writes the badges, the links and the setup cell into every notebook, from one place.
notebooks: $(VENV)/ready
	$(VENV)/bin/python notebooks/stamp.py

# Draws the figures that are files, from assets/benchmarks and assets/traces.
figures: $(VENV)/ready
	$(VENV)/bin/python assets/figures/draw.py

lint: $(VENV)/ready-to-test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

# For the browser tests, which skip themselves where it is missing (under CI=true they fail).
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
	test -x $(COLAB)/bin/python || $(PYTHON) -m venv $(COLAB)
	$(COLAB)/bin/python $(PIP) -c constraints-colab.txt -e . -r requirements-dev.txt
	touch $@
