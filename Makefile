# Two commands do everything from a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint nightly bench gpu clean
.DEFAULT_GOAL := demo

demo: $(READY)  ## set up, then train one tiny model on real text
	$(BIN)/python launch.py

test: $(READY)  ## set up, then run every test
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

nightly: $(READY)  ## the long fault-injection suites
	$(BIN)/python -m pytest -m nightly

bench: $(READY)  ## speed, as ratios measured side by side
	$(BIN)/python benchmarks/trainer.py
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/trunk.py

gpu: $(READY)  ## on a machine with a GPU: is its path right, and how fast is it (8 minutes)
	$(BIN)/python benchmarks/gpu.py

# setuptools comes first and the build is not isolated: an isolated build would resolve its own, unpinned, environment.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
