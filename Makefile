# `make train` and `make test` set up what they need, once.
VENV := .venv
PYTHON ?= python3
INSTALLED := $(VENV)/.installed

.PHONY: install train test lint clean

train: $(INSTALLED)  ## pre-train with the defaults; ARGS="model=60m ..." overrides them
	$(VENV)/bin/cola-train $(ARGS)

test: $(INSTALLED)  ## the whole suite; ARGS="-m 'not slow'" leaves out what takes longest
	$(VENV)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers,deepspeed]'
	touch $@

clean:
	rm -rf $(VENV) build dist
