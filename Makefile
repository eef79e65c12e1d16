# make run, make test, make lint, make bench: on a fresh machine with Python 3 and make.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Test processes at once; the tests wait for processes more than they compute.
JOBS ?= 4
TESTS ?= tests

.PHONY: run venv test lint bench load fuzz faults upgrades clean

run: venv
	$(BIN)/python -m gateway --cgi-dir cgi-bin

venv: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@

test: venv
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

lint: venv
	$(BIN)/ruff check gateway fcgi_pool bench tests cgi-bin examples
	$(BIN)/mypy

bench: venv
	$(BIN)/python -m bench.cgi
	$(BIN)/python -m bench.fastcgi
	$(BIN)/python -m bench.warm

load: venv
	$(BIN)/python -m tests.load

fuzz: venv
	$(BIN)/python -m tests.fuzz_fcgi

faults: venv
	$(BIN)/python -m pytest -n $(JOBS) tests/test_pool_faults.py
	$(BIN)/python -m tests.faults

upgrades: venv
	$(BIN)/python -m tests.upgrade_load

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
