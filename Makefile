# Needs only make and Python 3.10 or newer with pip. Another interpreter: make PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A process a core, and no more than memory is there for; each takes a test when it has ended one.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help demo bench scale test test-browser test-faults docs lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## train REINFORCE on CartPole-v1
	$(BIN)/python agents/reinforce.py --env-id CartPole-v1 --seed 1

bench: $(INSTALLED) ## measure speed beside other packages (more than an hour; PARTS="ppo envs" of it)
	$(BIN)/python benchmarks/speed.py $(PARTS)

scale: $(INSTALLED) ## measure what things cost as they grow, for docs/scaling.md (ten minutes; PARTS="envs ranks" of it)
	$(BIN)/python benchmarks/scale.py $(PARTS)

test: $(INSTALLED) ## run the tests and doctests (the slow ones: .venv/bin/pytest -m slow)
	$(BIN)/pytest $(PARALLEL)

test-faults: $(INSTALLED) ## all tests of what can go wrong: crashes, full disks, bad files, dead processes
	$(BIN)/pytest tests/faults -m "not gpu and not browser" $(PARALLEL)

test-browser: $(INSTALLED) ## look at TensorBoard's tabs in a browser (Chromium or Chrome, which must be installed)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"
	$(BIN)/pytest tests/test_browser.py -m browser

docs: $(INSTALLED) ## build the documentation into site/, where a warning is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(INSTALLED) ## check formatting, style, types and which module imports which
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## remove the virtual environment, caches and builds, but no runs
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist site *.egg-info
	find agents envs pgce tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pgce and its dependencies into $(VENV): about a minute"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
