# `make study` and `make test` set up everything they need on a fresh machine; `make help` tells the rest.

PYTHON ?= python3
VENV ?= .venv
STUDY ?= sweeps/studies/quickstart.yaml
WORKERS ?= 2
INSTALLED := $(VENV)/installed
RUN := $(VENV)/bin/python

.PHONY: help install install-slurm install-report study reports check-reports test test-fast lint format schemas smoke clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(INSTALLED)  ## make .venv with everything in it

# The stamp is written last: an installation that was interrupted is taken up again.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  f"Python 3.11, 3.12 or 3.13 is needed and $(PYTHON) is {v[0]}.{v[1]}; say: make install PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	@# opencv-python needs libGL, which servers often lack; the headless build of the same version does not.
	@$(RUN) -c 'import cv2' 2>/dev/null || { \
	  echo 'opencv-python cannot load here (no libGL): taking opencv-python-headless'; \
	  $(VENV)/bin/pip uninstall --quiet --yes opencv-python && \
	  $(VENV)/bin/pip install --quiet --no-deps "$$(sed -n 's/^opencv-python==/opencv-python-headless==/p' requirements.txt)"; }
	@touch $@

install-slurm:  ## as root on Debian: SLURM, for the tests of tests/slurm; starts nothing
	which slurmctld slurmd slurmdbd mariadbd munged >/dev/null || { apt-get update -q && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
	    slurm-wlm slurm-client slurmdbd mariadb-server munge; }
	@# torch.distributed looks the nodes of the test cluster up by name.
	for node in n1 n2; do getent hosts $$node >/dev/null || echo "127.0.0.1 $$node" >> /etc/hosts; done

install-report:  ## as root on Debian: a browser and LaTeX, by which tests look at the pages and tables of reports
	which chromium pdflatex >/dev/null || { apt-get update -q && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
	    chromium fonts-liberation texlive-latex-base texlive-latex-recommended; }

study: $(INSTALLED)  ## pretrain, evaluate, report: STUDY=sweeps/studies/quickstart.yaml WORKERS=2
	$(RUN) -m sweeps run $(STUDY) --workers $(WORKERS)
	$(RUN) -m analysis $(STUDY)

test: $(INSTALLED)  ## every test that can run here
	@# SLURM's tests wait more than they compute: they go beside the others, and are shown after them.
	@mkdir -p build; export OMP_NUM_THREADS=1; \
	  $(RUN) -m pytest -m slurm > build/slurm-tests.txt 2>&1 & slurm=$$!; \
	  $(RUN) -m pytest -m 'not slurm' -n $(WORKERS); others=$$?; \
	  wait $$slurm; slurm=$$?; cat build/slurm-tests.txt; \
	  echo "exit codes: $$slurm of SLURM's tests, $$others of the others"; [ $$slurm$$others = 00 ]

test-fast: $(INSTALLED)  ## the tests that take seconds
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) -m 'not slow and not slurm and not gpu'

lint: $(INSTALLED)  ## ruff check, ruff format --check, mypy, the order of imports
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

format: $(INSTALLED)  ## let ruff write the format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

check-reports: $(INSTALLED)  ## do the committed reports say which settings they have, and is each what its table makes?
	$(RUN) -m analysis --check

reports: $(INSTALLED)  ## write every committed report again from its results.csv
	$(RUN) -m analysis --refresh

schemas: $(INSTALLED)  ## the JSON schemas by which editors complete and check the YAML files -> schemas/
	$(RUN) -m sweeps.schema

smoke: $(INSTALLED)  ## a whole study in two minutes, to see that every stage works
	$(RUN) -m sweeps run sweeps/studies/smoke.yaml --workers $(WORKERS)
	$(RUN) -m analysis sweeps/studies/smoke.yaml

bench-criterion: $(INSTALLED)  ## time and memory of the criterion -> benchmarks/criterion.md
	$(RUN) -m benchmarks.criterion

bench-data: $(INSTALLED)  ## the input pipeline against the published recipe -> benchmarks/data.md
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.data

bench-sweeps: $(INSTALLED)  ## a study of 10,000 runs planned, watched and analysed -> benchmarks/sweeps.md
	$(RUN) -m benchmarks.sweeps

clean:  ## remove caches of tools; never runs, data or reports
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
