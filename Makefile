# Every target installs what it needs into .venv first. PYTHON chooses the interpreter of a new .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PARITY := .parity
PYTEST_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-short study-demo study-smoke bench test campaign wheel-check parity faults faults-factory forge bench-factory lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP)  ## create .venv and install omnichat into it, editable, with every extra

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "omnichat needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo absent)." \
			"Name another: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "cannot create $(VENV): is Python's venv module installed (Debian: python3-venv)?" >&2; exit 1; }
	@echo "installing omnichat and what it needs into $(VENV); torch is large, this takes some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[synthesis,writers,launchers,ray,tensorboard,web,serve,mic,dev]' || { \
		echo "the installation failed; trying once more (a time-out is the usual cause)" >&2; sleep 5; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[synthesis,writers,launchers,ray,tensorboard,web,serve,mic,dev]'; }
	@touch $@

demo: $(STAMP)  ## the whole way: corpus, training, evaluation, report; prints the report's path
	$(BIN)/python scripts/demo.py

demo-short: $(STAMP)  ## the same way with very little data and few steps, for CI
	$(BIN)/python scripts/demo.py --preset smoke

STUDY_ARGS ?=
study-demo: $(STAMP)  ## every table and figure of the study at the laptop's size (STUDY_ARGS="--seeds 0"); goes on after a kill
	$(BIN)/python scripts/study.py --preset demo --jobs 2 $(STUDY_ARGS)

study-smoke: $(STAMP)  ## every script of the study from end to end in miniature, for CI
	$(BIN)/python scripts/study.py --preset smoke --jobs 2 $(STUDY_ARGS)

bench: $(STAMP)  ## measure how fast training is, switch by switch; writes bench/ (about 12 minutes on two cores)
	@test -f corpora/sharechatx-demo/manifest.jsonl || $(BIN)/omnichat synthesize corpus=demo
	@test -f corpora/dailytalk-stand-in/manifest.jsonl || $(BIN)/omnichat prepare corpus=stand_in
	$(BIN)/omnichat bench experiment=demo trainer.speed.compile=true $(BENCH_ARGS)

bench-factory: $(STAMP)  ## measure how fast the factory makes verified speech; writes bench/synthesis.json
	$(BIN)/python scripts/bench_synthesis.py $(BENCH_ARGS)

# One thread a worker: torch's own threads and the workers would fight for the cores.
test: $(STAMP)  ## run the test suite (PYTEST_ARGS="-k name" narrows it)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

campaign: $(STAMP)  ## run the tests that are too long for every commit
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m campaign $(PYTEST_ARGS)

wheel-check: $(STAMP)  ## install the wheel alone into a clean environment, and load a saved model there (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m campaign tests/integration/test_wheel_venv.py $(PYTEST_ARGS)

parity: $(STAMP) $(PARITY)/.installed  ## compare the experts with reference implementations, at real sizes
	PYTHONPATH=$(PARITY) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m parity tests/parity $(PYTEST_ARGS)

$(PARITY)/.installed: requirements/parity.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(PARITY) -r $<
	@touch $@

FAULTS ?= --count 100
faults: $(STAMP)  ## hurt a hundred real runs (FAULTS="--count 300 --seed 7") and count what was survived
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python scripts/faults.py $(FAULTS)

FACTORY_FAULTS ?= --count 30
faults-factory: $(STAMP)  ## hurt the making of thirty corpora, twenty of them by kills, and compare every byte
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python scripts/faults.py --of factory --out runs/faults-factory.json $(FACTORY_FAULTS)

FORGE ?= --count 100
forge: $(STAMP)  ## feed the factory a hundred forged inputs (FORGE="--count 1000 --seed 7") and count what did harm
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python scripts/forge_inputs.py $(FORGE)

lint: $(STAMP)  ## check format, lint rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## format the code and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove build and tool caches; .venv, runs and corpora stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find omnichat tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
