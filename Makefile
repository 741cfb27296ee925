PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test

demo: $(VENV)/.installed
	$(RUN) -m suite run experiment=quick
	$(RUN) -m suite report quick

test: $(VENV)/.installed-dev
	$(RUN) -m pytest --numprocesses auto --dist worksteal -m "not slow and not gpu"

# pip finds torch as it is set up to: a local build, an index of your own, or PyPI.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
