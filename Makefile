# Two targets do all the set-up; each line they run can be typed by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check install install-test bench clean

demo: install  ## denoise a real MR scan and a generated low-dose CT series
	$(BIN)/medssl demo demo --overwrite

test: install-test check  ## every check that CI runs

install: $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .

install-test: $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"

$(VENV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/python -m pytest

bench: install
	$(BIN)/python benchmarks/denoise_mr.py
	$(BIN)/python benchmarks/recon_mri.py
	$(BIN)/python benchmarks/memory.py

clean:
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache
