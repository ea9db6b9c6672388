PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?= ../shared/data
SLIDES ?= $(DATA)/slides
TILES ?= $(wildcard $(DATA)/tiles/nuclei_density)
# one more than there are CPUs: many tests wait for a process that they started
PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(min(1 + (os.cpu_count() or 1), 8))')
MINUTES ?= 10
BASE ?= docs/experiments/small.yaml

.PHONY: help install demo docs test test-fast test-long lint format bench bench-gpu experiments evidence teachers torture slurm hashes clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $(STAMP)

install: $(STAMP) ## Install into .venv, with the pins of constraints.txt

demo: install ## Both stages on synthetic slides, in minutes on a CPU; writes demo/
	$(BIN)/g2l demo --out demo

docs: install ## The documentation site, of docs/ and the docstrings; warnings are errors; writes site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html; with the search: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site"

# the many processes that tests start compile the project once, whatever the environment says
test: install ## Run the tests, on all CPUs
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal -m "not long"

test-long: install ## The tests that make test leaves out, in minutes: each is dear, and has a cheaper sibling there
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal -m long

test-fast: install ## The quick tests, in a minute on two CPUs: no kills, clusters, S3 or browser
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal \
		-m "not (kill or cluster or torchrun or s3 or browser or slow or long)"

lint: install ## ruff (lint, format), mypy and the import rules of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install ## Let ruff put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## CPU benchmarks
	$(BIN)/python -m tests.bench

bench-gpu: install ## Both stages at true size on a GPU; with the demo's encoders on a CPU
	$(BIN)/python -m tests.bench.bench_gpu

experiments: install ## The open questions, on SLIDES with small encoders: an hour or two on two cores; writes experiments/
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.experiments docs/experiments/losses.yaml docs/experiments/seeds.yaml \
		docs/experiments/alpha.yaml docs/experiments/teacher-norm.yaml docs/experiments/patches.yaml \
		--base $(BASE) --slides $(SLIDES) $(if $(TILES),--tiles $(TILES)) --out experiments

evidence: install ## Students of a teacher that knows something, on the real tissue of DATA: under two hours on two cores; writes evidence/
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.evidence --slides $(DATA)/slides --tiles $(DATA)/tiles --out evidence

teachers: install ## One, two and three teachers on the real tissue of DATA: about an hour on two cores; writes evidence/
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.evidence.questions $(addprefix docs/experiments/several-teachers/,\
		teachers.yaml dropping.yaml balance.yaml tokens.yaml vit.yaml) --slides $(DATA)/slides --tiles $(DATA)/tiles \
		--out evidence

slurm: install ## The SLURM files on real workers and two nodes, under a stand-in for SLURM
	$(BIN)/python -m pytest tests/torture/slurm_end_to_end.py

hashes: ## A file for pip --require-hashes, as pip resolves the pins on this machine
	$(PYTHON) -m tests.tools.hashes

torture: install ## Kill every command, break its disk, repeat it: MINUTES=10; writes torture/
	$(BIN)/python -m tests.torture --minutes $$(($(MINUTES) * 4 / 5)) --out torture
	$(BIN)/python -m tests.torture.fuzz --minutes $$(($(MINUTES) / 5)) --keep torture/inputs

clean: ## Remove what install, demo and the tools made
	rm -rf $(VENV) demo site experiments evidence torture build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
