# make run, make test, make lint, make bench: on a fresh machine with Python 3 and make.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Test processes at once; the tests wait for processes more than they compute.
JOBS ?= 4
TESTS ?= tests
# Those that start CGI programs; with --warm, which may not make a difference to any of them.
WARM_TESTS ?= $(patsubst %,tests/test_%.py,access_log cgi_output cgi_variables clients explain git hostile perl \
	processes programs review smoke transfers)

.PHONY: run venv test lint bench load isolation fuzz faults upgrades soak clean

run: venv
	$(BIN)/python -m gateway --cgi-dir cgi-bin

venv: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@

test: venv
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)
ifeq ($(TESTS),tests)
	$(BIN)/python -m pytest -n $(JOBS) --warm $(WARM_TESTS)
endif

lint: venv
	$(BIN)/ruff check gateway fcgi_pool bench tests cgi-bin examples
	$(BIN)/mypy

bench: venv
	$(BIN)/python -m bench.cgi
	$(BIN)/python -m bench.fastcgi
	$(BIN)/python -m bench.warm
	$(BIN)/python -m bench.static
	$(BIN)/python -m bench.front

load: venv
	$(BIN)/python -m tests.load

isolation: venv
	$(BIN)/python -m tests.warm_isolation

fuzz: venv
	$(BIN)/python -m tests.fuzz_fcgi

faults: venv
	$(BIN)/python -m pytest -n $(JOBS) tests/test_pool_faults.py
	$(BIN)/python -m tests.faults

upgrades: venv
	$(BIN)/python -m tests.upgrade_load

soak: venv
	$(BIN)/python -m tests.soak

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
