# Two commands do everything from a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SLURM_PACKAGES := slurmctld slurmd slurm-client munge slurmdbd mariadb-server

.PHONY: demo test test-slurm slurm browser lint nightly bench gpu clean
.DEFAULT_GOAL := demo

demo: $(READY)  ## set up, then train one tiny model on real text
	$(BIN)/python launch.py

test: $(READY)  ## set up, then run every test
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slurm: $(READY) slurm  ## install a private SLURM (Debian, Ubuntu) and run the tests that need it
	SKIPSWEEP_NEEDS_SLURM=1 $(BIN)/python -m pytest tests/slurm

slurm:  ## the daemons that tests start for themselves
	@PATH="$$PATH:/usr/sbin:/sbin"; \
	for program in slurmctld slurmd munged slurmdbd mariadbd sbatch; do \
	  command -v $$program >/dev/null || lacking="$$lacking $$program"; \
	done; \
	[ -z "$$lacking" ] && exit 0; \
	echo "installing SLURM for tests, for want of$$lacking"; \
	[ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(SLURM_PACKAGES)

browser: $(READY)  ## install a browser (Debian, Ubuntu) and look at reports and the board in it
	@command -v chromium >/dev/null || { \
	  [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; }
	SKIPSWEEP_NEEDS_BROWSER=1 $(BIN)/python -m pytest tests/test_browser.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

nightly: $(READY) slurm  ## the long fault-injection suites
	SKIPSWEEP_NEEDS_SLURM=1 $(BIN)/python -m pytest -m nightly

bench: $(READY) slurm  ## speed, as ratios measured side by side; fails where a bound is missed
	$(BIN)/python benchmarks/trainer.py
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/trunk.py
	$(BIN)/python benchmarks/skipping.py
	$(BIN)/python benchmarks/mechanisms.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/launching.py
	$(BIN)/python benchmarks/preempting.py

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
