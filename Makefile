# What there is to do in a checkout. Each target makes what it needs; plain pip equivalents are in the README.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: quickstart test test-slow torture check format bench ui clean

quickstart: $(VENV)/installed        ## the first pictures, on the models that ship
	$(BIN)/genkit run quickstart --out outputs/quickstart

test: $(VENV)/installed-test         ## the tests, without the slow ones
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed-test    ## the slow ones: notebooks, several processes, memory bounds
	$(BIN)/python -m pytest -m slow

torture: $(VENV)/installed-test      ## batches killed a hundred times, on disks that fail at every call: an hour
	$(BIN)/python -m pytest -m slow tests/batch
	$(BIN)/python tests/batch/torture.py

check: $(VENV)/installed-test        ## lint, format, types, import rules, and whether the recipe schema is current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py
	$(BIN)/genkit schema --check recipes/genkit-recipe.schema.json

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-test        ## figures beside the peers; copy them to benchmarks/results.md by hand
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/style_transfer.py
	$(BIN)/python benchmarks/midi_generation.py
	$(BIN)/python benchmarks/audio_super_resolution.py
	$(BIN)/python benchmarks/image_translation.py
	$(BIN)/python benchmarks/stable_diffusion.py
	$(BIN)/python benchmarks/batch.py

ui: $(VENV)/installed-ui             ## the page in the browser
	$(BIN)/genkit ui

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# An installation is made once, and again when pyproject.toml changes.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@ $(VENV)/installed

$(VENV)/installed-ui: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ui]"
	touch $@ $(VENV)/installed
