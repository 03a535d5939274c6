# `make study` and `make test` set up everything they need on a fresh machine; `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
STUDY ?= sweeps/studies/quickstart.yaml
WORKERS ?= 2
INSTALLED := $(VENV)/installed
RUN := $(VENV)/bin/python
# Whole files, so that what a file's tests share is made once, in the order of tests/conftest.py.
BY_FILE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help install headless install-slurm install-report study reports site docs check-reports test test-fast lint format schemas smoke clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(INSTALLED)  ## make .venv with every package

# The stamp is written last, so that an interrupted installation is repeated.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  f"Python 3.11, 3.12 or 3.13 is needed and $(PYTHON) is {v[0]}.{v[1]}; try: make install PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	@$(MAKE) --no-print-directory headless
	@touch $@

headless:  ## where opencv-python cannot load (no libGL), take its headless build; RUN=python in a conda environment
	@$(RUN) -c 'import cv2' 2>/dev/null || { \
	  echo 'opencv-python cannot load here (no libGL): taking opencv-python-headless'; \
	  $(RUN) -m pip uninstall --quiet --yes opencv-python && \
	  $(RUN) -m pip install --quiet --no-deps "$$(sed -n 's/^opencv-python==/opencv-python-headless==/p' requirements.txt)"; }

install-slurm:  ## install SLURM for tests/slurm (root, Debian); starts nothing
	which slurmctld slurmd slurmdbd mariadbd munged >/dev/null || { apt-get update -q && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
	    slurm-wlm slurm-client slurmdbd mariadb-server munge; }
	@# torch.distributed resolves the test cluster's nodes by name.
	for node in n1 n2; do getent hosts $$node >/dev/null || echo "127.0.0.1 $$node" >> /etc/hosts; done

install-report:  ## install a browser and LaTeX for the tests of reports (root, Debian)
	which chromium pdflatex >/dev/null || { apt-get update -q && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
	    chromium fonts-liberation texlive-latex-base texlive-latex-recommended; }

study: $(INSTALLED)  ## pretrain, evaluate, report: STUDY=sweeps/studies/quickstart.yaml WORKERS=2
	$(RUN) -m sweeps run $(STUDY) --workers $(WORKERS)
	-$(RUN) -m analysis.pictures --study $(STUDY)  # a study without pictures still has a report
	$(RUN) -m analysis $(STUDY)

test: $(INSTALLED)  ## run every test that can run here
	@# SLURM's tests mostly wait, so they run beside the others; their output is shown afterwards. Only files with such
	@# tests are given to each, since importing the others takes longer than to skip them.
	@mkdir -p build; export OMP_NUM_THREADS=1; \
	  $(RUN) -m pytest -m slurm tests/slurm > build/slurm-tests.txt 2>&1 & slurm=$$!; \
	  $(RUN) -m pytest -m 'not slurm and not gpu' $(BY_FILE); others=$$?; \
	  $(RUN) -m pytest -m gpu -rs $$(grep -rl --include='*.py' mark.gpu tests); gpu=$$?; \
	  wait $$slurm; slurm=$$?; cat build/slurm-tests.txt; \
	  echo "exit codes: $$slurm of SLURM's tests, $$gpu of the GPU's, $$others of the others"; \
	  [ $$slurm$$gpu$$others = 000 ]

test-fast: $(INSTALLED)  ## run the tests that take seconds
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(BY_FILE) -m 'not slow and not slurm and not gpu'

lint: $(INSTALLED)  ## check with ruff and mypy, and the order of imports
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

format: $(INSTALLED)  ## format with ruff
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

check-reports: $(INSTALLED)  ## check that committed reports match their tables and name their settings
	$(RUN) -m analysis --check

reports: $(INSTALLED)  ## rebuild every committed report from its results.csv, their overview, and the notebook
	$(RUN) -m analysis --refresh
	$(VENV)/bin/jupyter execute --inplace analysis/notebooks/alpha.ipynb

site: $(INSTALLED)  ## write the overview of all reports -> reports/index.html
	$(RUN) -m analysis --site

docs: $(INSTALLED)  ## build all pages and the library's API as one site -> build/site/index.html
	@# A broken link is an error. The variable turns off the theme's notice of its successor.
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

schemas: $(INSTALLED)  ## write the JSON schemas for editors -> schemas/
	$(RUN) -m sweeps.schema

smoke: $(INSTALLED)  ## run a whole study in two minutes, to see that every stage works
	$(RUN) -m sweeps run sweeps/studies/smoke.yaml --workers $(WORKERS)
	$(RUN) -m analysis sweeps/studies/smoke.yaml

bench-criterion: $(INSTALLED)  ## measure time and memory of the criterion -> benchmarks/criterion.md
	$(RUN) -m benchmarks.criterion

bench-launches: $(INSTALLED)  ## kernels, waits and collectives of a training step, counted without a GPU (g++)
	$(RUN) -m benchmarks.launches

check-gpu: $(INSTALLED)  ## on a machine with a GPU, what works there and how fast, in ten minutes -> benchmarks/gpu.md
	$(RUN) -m benchmarks.gpu_check

bench-data: $(INSTALLED)  ## compare the input pipeline with the published recipe -> benchmarks/data.md
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.data

bench-evaluation: $(INSTALLED)  ## compare evaluations by one process and by two -> benchmarks/evaluation.md
	$(RUN) -m benchmarks.evaluation

bench-sweeps: $(INSTALLED)  ## plan, watch and analyse a study of 10,000 runs -> benchmarks/sweeps.md
	$(RUN) -m benchmarks.sweeps

clean:  ## remove the tools' caches; keeps runs, data and reports
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
