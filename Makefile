# `make demo` for a first look, `make test` and `make lint` for a change.
# PYTHON chooses the interpreter for .venv: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/halfmeg compare cnn resnet-linear resnet-shared --data digits --seeds 3 --out runs/demo

test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses 2

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "halfmeg needs Python 3.11 or later; name one with PYTHON="; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@
