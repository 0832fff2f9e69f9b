# make talk   a spoken question becomes a spoken answer, on this machine, with nothing else installed
# make eval   the default bundle (and nano-voice, if it is here) judged on all offline sets, into reports/
# make test   the tests;  make lint  style and types;  make test-slow  the long suites
# make readme  what `make eval` found, as the table and the picture in the README
.PHONY: talk serve eval readme test test-slow lint format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
QUESTION ?= examples/question-en.flac
RUNS = $$(for system in small nano-voice; do ls reports/$$system/run.json 2>/dev/null; done)

talk: $(VENV)/.user
	@$(BIN)/stepaudio pull small
	@$(BIN)/stepaudio talk $(QUESTION) -o reply.wav

serve: $(VENV)/.user
	@$(BIN)/stepaudio pull small
	@$(BIN)/stepaudio serve

eval: $(VENV)/.dev
	@$(BIN)/stepaudio pull small dnsmos
	$(BIN)/stepaudio eval all --system small
	$(BIN)/stepaudio eval codec --system codec:opus-12k --limit 10
	@if $(BIN)/stepaudio doctor nano-voice >/dev/null 2>&1; then \
	  set -x; $(BIN)/stepaudio eval all --system nano-voice --conversations 0; \
	else echo "nano-voice is not on this machine: left out"; fi
	$(BIN)/stepaudio eval leaderboard reports/*/run.json -o reports/leaderboard.md
	$(BIN)/stepaudio eval summary $(RUNS) --picture reports/summary.png

# The same figures into the README.
readme: $(VENV)/.dev
	$(BIN)/stepaudio eval summary $(RUNS) --into README.md --picture docs/images/eval.png

test: $(VENV)/.dev
	@$(BIN)/stepaudio pull tiny
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev
	@$(BIN)/stepaudio pull tiny small
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) reply.wav

# What was installed last is remembered by a stamp, so a second run installs nothing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing stepaudio into $(VENV)"
	@$(PIP) -e '.[local,serve]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing stepaudio and what its tests need into $(VENV)"
	@$(PIP) -e '.[local,serve,bench,eval,train,dev]'
	@touch $@ $(VENV)/.user
