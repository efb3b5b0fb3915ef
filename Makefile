# Everything is installed into .venv, from a bare clone; nothing outside this directory changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The install is editable: Python changes are seen at once, these need a new one.
INPUTS := pyproject.toml hatch_build.py $(wildcard src/userfault/native/*.[ch])
# pip hides what a build prints, so a missing native core is reported here.
REPORT_NATIVE := $(BIN)/python -c 'from userfault.native import why_missing as w; w() and print(w(), "(In this clone: make clean first.)")'

.PHONY: check test findings clean

check: $(VENV)/installed
	$(BIN)/userfault check

test: $(VENV)/installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2

# The traces in findings/, after a change of the model.
findings: $(VENV)/installed
	$(BIN)/python findings/traces.py

clean:
	rm -rf $(VENV) src/userfault/native/_userfault.so

$(VENV)/installed: $(INPUTS) | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@$(REPORT_NATIVE)
	@touch $@

$(VENV)/installed-dev: $(INPUTS) | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(REPORT_NATIVE)
	@touch $@ $(VENV)/installed

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "userfault needs Python 3.11 or newer as $(PYTHON): install it, or name another one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) can't make a virtual environment: apt-get install python3-venv, then make again." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
