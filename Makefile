# `make demo` for a first look, `make test` and `make lint` for a change.
# PYTHON chooses the interpreter for .venv: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: demo test test-all campaign faults lint clean

demo: .venv/installed
	$(BIN)/halfmeg compare cnn resnet-linear resnet-shared epochs=4 batch_size=64 \
		--data digits --seeds 3 --out runs/demo

test: .venv/installed-dev .venv/browser .venv/webassembly
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
		-m "not slow and not campaign"

test-all: .venv/installed-dev .venv/browser .venv/chip .venv/webassembly
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not campaign"

# The tests that take an hour and more together.
campaign: .venv/installed-dev .venv/browser
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m campaign

# Hours: what docs/reliability.md states. Stopped, it goes on from its results.
faults: .venv/installed-dev
	mkdir -p runs
	$(BIN)/python tests/faults/campaign.py --kills 500 --workers 50 --power-cuts \
		--inputs 100000 --files 120000 --requests 20000 --results runs/faults.json

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

# The page is tested in Debian's chromium; where it cannot be installed those tests are skipped.
.venv/browser: .venv/created
	@command -v chromium chromium-browser >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 \
		|| echo "no chromium: the tests of the page in a browser will be skipped"
	touch $@

# C runs on emulated Cortex-M boards; without compiler and emulator those tests are skipped.
.venv/chip: .venv/created
	@command -v arm-none-eabi-gcc >/dev/null && command -v qemu-system-arm >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
			gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm; } >/dev/null 2>&1 \
		|| echo "no arm-none-eabi-gcc or qemu-system-arm: the tests on boards will be skipped"
	touch $@

# The page's network is compiled by clang and proved in node; without them those tests are skipped.
.venv/webassembly: .venv/created
	@(for program in clang wasm-ld node; do command -v $$program || exit 1; done) >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends clang lld nodejs; } \
			>/dev/null 2>&1 \
		|| echo "no clang, lld or node: the tests of the exported page will be skipped"
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@
