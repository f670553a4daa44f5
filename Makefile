# Every target makes its own environment first; nothing needs to be installed by hand but Python and make.
PYTHON ?= python3
VENV := .venv
AFFSERVE := $(VENV)/bin/affserve

.DEFAULT_GOAL := help
.PHONY: help setup demo lint check test test-page bench wheel clean

# Tests that start no server and train nothing.
QUICK := tests/test_layers.py tests/test_readme.py $(addprefix tests/train/test_,labels.py windows.py metrics.py losses.py \
	temporal_head.py) $(addprefix tests/export/test_,contract.py plans.py) $(addprefix tests/client/test_,row_merger.py \
	outputs.py results.py video.py) $(addprefix tests/benchmarks/test_,statistics.py report.py)

help: ## show these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## make .venv with affserve and all it needs

# Rebuilt when the dependencies change; sources are read in place.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## train, export, serve and call a small model; ends in a table
	$(AFFSERVE) demo

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

check: lint ## lint, types and the quick tests, for while you edit
	$(VENV)/bin/pytest $(QUICK)

test: lint ## lint, types and all tests, with the real Triton server
	$(VENV)/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-page: setup ## the page of `affserve view` in Chromium, which is installed where it is missing
	command -v chromium || (apt-get update && apt-get install --yes chromium)
	$(VENV)/bin/pytest tests/client/test_page.py

bench: demo ## measure speed and memory into benchmarks/results
	$(AFFSERVE) bench generator
	$(AFFSERVE) bench demo
	$(AFFSERVE) bench training build/demo/corpus
	$(AFFSERVE) bench all --target cpu

wheel: setup ## build dist/*.whl and dist/*.tar.gz
	$(VENV)/bin/python -m build

clean: ## remove everything that make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
