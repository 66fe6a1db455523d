# The only place that makes the environment. `make quickstart` and `make test` need nothing but Python, make and an index.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
TOOLS := .venv/tools_ready

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: quickstart test check bench bench-video bench-cache bench-probe ablation students clean

quickstart: $(READY)  ## install, then run the first experiment
	$(BIN)/distill quickstart

test: $(TOOLS)  ## install, then run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0

check: $(TOOLS)  ## style, types, spelling, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell distill students teachers recipes tests tools README.md
	$(BIN)/python -m pytest tests/test_imports.py
	$(BIN)/python -m tools.student_table --check
	$(BIN)/python -m tools.bytes_table --check

bench: $(READY)  ## the quickstart's claims over three seeds
	$(BIN)/python tools/bench_quickstart.py

bench-video: $(READY)  ## CPU time of every way to read a clip; VIDEOS="a.mp4 b.mp4" measures yours
	OMP_NUM_THREADS=1 $(BIN)/python tools/bench_video.py $(VIDEOS)

bench-cache: $(READY)  ## what the cache costs: making it, reading it, training from it
	$(BIN)/python -m tools.bench_cache

bench-probe: $(READY)  ## what the probes' searches cost beside scikit-learn's, with the scores of both
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.bench_probe

ablation: $(READY)  ## which part of distilling does what: many trainings of one small student, three seeds
	$(BIN)/python -m tools.ablation

students: $(READY)  ## write the README's table of students
	$(BIN)/python -m tools.student_table --write

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "distill needs Python 3.11 or newer; say make PYTHON=python3.12")'
	@echo "making .venv with $$($(PYTHON) --version); about 4 minutes and 6 GB, once"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(INSTALL) .
	@touch $@
	@echo "environment ready: .venv"

$(TOOLS): $(READY)
	@echo "adding what tests, exports and pruning need; about 2 minutes and 2 GB, once"
	$(INSTALL) '.[dev,deploy]'
	@touch $@

clean:  ## forget runs and caches; the environment stays
	rm -rf runs cache .mypy_cache .ruff_cache .pytest_cache
