# Thin aliases of `python3 -m natgrad_lab ...`, which needs only Python >= 3.11 and makes .venv itself.
#   make lab                              make test
#   make lab ARGS="--no-browser"          make test ARGS="--fast"          make lab PYTHON=python3.12
PYTHON ?= python3
ARGS ?=

.PHONY: help lab test doctor clean

help:
	@echo 'make lab      install what is missing, open JupyterLab on notebooks/'
	@echo 'make test     install what is missing, run every test'
	@echo 'make doctor   say what works on this machine'
	@echo 'make clean    remove .venv and everything generated'
	@echo 'Options go through ARGS: make lab ARGS="--no-browser --port=8899"'

lab test doctor:
	@$(PYTHON) -m natgrad_lab $@ $(ARGS)

clean:
	rm -rf .venv .natgrad build dist artifacts .pytest_cache .hypothesis .ruff_cache
