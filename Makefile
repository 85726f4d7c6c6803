# One command each: `make demo` sets up and shows real scores, `make test` sets up and runs all tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   ?= demo

.PHONY: help demo test lint bench clean

help:
	@echo "make demo   set up, generate audio, embed, evaluate, print a leaderboard"
	@echo "make test   set up and run all tests"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make bench  print the speed ratios (half an hour)"

$(STAMP): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xares-store needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m xares_store demo-data $(DEMO)/data
	$(BIN)/xares embed --encoder logmel --task $(DEMO)/data/demo.toml --data $(DEMO)/data --store $(DEMO)/xares.store
	$(BIN)/xares embed --encoder modspec --task $(DEMO)/data/demo.toml --data $(DEMO)/data --store $(DEMO)/xares.store
	$(BIN)/xares evaluate --store $(DEMO)/xares.store
	$(BIN)/xares leaderboard --store $(DEMO)/xares.store
	$(BIN)/xares compare modspec logmel --store $(DEMO)/xares.store
	$(BIN)/xares sql --store $(DEMO)/xares.store "select encoder, probe, target, round(avg(correct::int), 3) as accuracy from predictions group by all order by accuracy limit 8"

test: $(STAMP)
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(DEMO) dist build .pytest_cache .mypy_cache .ruff_cache
