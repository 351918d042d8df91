# Everything needed to work in a fresh clone; `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
CASES ?= 10000

PY := $(VENV)/bin/python
# A stamp is written after its step has succeeded, so that an interrupted step is done again.
STAMPS := $(VENV)/.d2_pixcontrast
# The tested versions go into an environment that was made here. One that was there before keeps
# what it has: pip then only adds what is missing.
PINS = $(shell test -e $(STAMPS)/made-here && echo --constraint constraints.txt)
INSTALL = $(PY) -m pip install --disable-pip-version-check $(PIP_ARGS) $(PINS)

.PHONY: help env demo test fuzz lint clean
.DELETE_ON_ERROR:

help:  ## list the targets and variables
	@sed -n 's/^\([a-z]*\): .*## /make \1	/p' Makefile | expand -t 14
	@echo
	@echo "Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  PIP_ARGS='$(PIP_ARGS)'"
	@echo "           DEMO_ARGS='$(DEMO_ARGS)'  PYTEST_ARGS='$(PYTEST_ARGS)'  CASES=$(CASES)"

env: $(STAMPS)/package  ## set up VENV: torch, detectron2, this package; skips what stands

demo: env  ## train, evaluate and compare two small models, write output/demo/report.html
	$(PY) -m d2_pixcontrast.demo $(DEMO_ARGS)

test: env lint  ## ruff and the test suite
	$(PY) -m pytest $(PYTEST_ARGS)

fuzz: env  ## the property-based suite with CASES (10000) made-up batches, about ten minutes
	PIXCONTRAST_FUZZ_CASES=$(CASES) $(PY) -m pytest tests/fuzz $(PYTEST_ARGS)

lint: env  ## ruff alone
	$(PY) -m ruff check .

clean:  ## remove caches and build leftovers, but neither VENV nor output/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

$(STAMPS)/venv:
	@test -e $(PY) || { mkdir -p $(STAMPS) && touch $(STAMPS)/made-here; }
	@python=$(PYTHON); test ! -e $(PY) || python=$(PY); \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: $$python is not Python 3.11 or newer ($$($$python -V 2>&1));" \
	        "name another one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null 2>&1 \
	    || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/venv constraints.txt
	test -z "$(PINS)" && $(PY) -c 'import torch, torchvision' 2>/dev/null \
	    || $(INSTALL) torch torchvision setuptools wheel
	@touch $@

$(STAMPS)/detectron2: $(STAMPS)/torch tools/install_detectron2.py
	$(PY) tools/install_detectron2.py -- $(PIP_ARGS) $(PINS)
	@touch $@

# An editable install belongs to one checkout; another one that shares VENV installs itself again.
ifneq ($(shell cat $(STAMPS)/package 2>/dev/null),$(CURDIR))
.PHONY: $(STAMPS)/package
endif

$(STAMPS)/package: $(STAMPS)/detectron2 setup.py pyproject.toml constraints.txt
	$(INSTALL) --editable '.[vis,export,dev]'
	@$(PY) -c 'import cv2' 2>/dev/null || { \
	    echo "opencv-python does not import here (no libGL?): installing its headless build over it"; \
	    $(INSTALL) --force-reinstall --no-deps opencv-python-headless; }
	@echo '$(CURDIR)' > $@
