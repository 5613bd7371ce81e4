# Needs only make and Python 3.10 or newer with pip. Another interpreter: make PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo bench test test-faults lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## train REINFORCE on CartPole-v1
	$(BIN)/python agents/reinforce.py --env-id CartPole-v1 --seed 1

bench: $(INSTALLED) ## measure speed beside other packages (more than an hour; PARTS="ppo envs" of it)
	$(BIN)/python benchmarks/speed.py $(PARTS)

test: $(INSTALLED) ## run the tests and doctests (the slow ones: .venv/bin/pytest -m slow)
	$(BIN)/pytest

test-faults: $(INSTALLED) ## all tests of what can go wrong: crashes, full disks, bad files, dead processes
	$(BIN)/pytest tests/faults -m "not gpu and not browser"

lint: $(INSTALLED) ## check formatting, style, types and which module imports which
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## remove the virtual environment, caches and builds, but no runs
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find agents envs pgce tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pgce and its dependencies into $(VENV): about a minute"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
