PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# Errors of mypy by file. Its exit status is 1 where there are any, and more where it could not look.
COUNT = said=$$($(VENV)/bin/mypy); test $$? -le 1 && echo "$$said" | sed -n 's/:[0-9]*: error: .*//p' | LC_ALL=C sort | uniq -c

.PHONY: demo check types test

demo: $(VENV)/.installed
	$(RUN) -m suite run experiment=quick
	$(RUN) -m suite report quick

check: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	found=$$($(COUNT)) && echo "$$found" | diff .ci/mypy.txt - || \
	{ echo "mypy finds (>) other errors a file than .ci/mypy.txt keeps (<). More: mend them; fewer: make types"; exit 1; }
	$(VENV)/bin/codespell *.md docs .ci Makefile pyproject.toml conf models tasks suite reports tests

# Keeps today's number of errors of every file: a number in a change may only be smaller.
types: $(VENV)/.installed-dev
	found=$$($(COUNT)) && echo "$$found" > .ci/mypy.txt

# Python keeps what it compiles, whatever the environment says: every worker, and every process of a test, would compile all
# sources again.
test: $(VENV)/.installed-dev
	PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest --numprocesses auto --dist worksteal -m "not slow and not gpu"

# pip finds torch as it is set up to: a local build, an index of your own, or PyPI.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
