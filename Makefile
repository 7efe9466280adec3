# The two commands of a fresh clone are `make benchmark` and `make test`; both run `make setup` first.
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
TASKS := PushCube PickCube StackCube

.DEFAULT_GOAL := help
SHELL := bash
.PHONY: help setup benchmark benchmark-full benchmark-robustness docs notebook lint test test-under-load test-other-processor

help: ## show these lines
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1|/' | while IFS='|' read -r name text; do printf '  make %-20s %s\n' "$$name" "$$text"; done

setup: ## make .venv, install everything, check that there is a renderer (does nothing when already done)
	@bash .ci/setup.sh

benchmark: setup ## roll the bundled policy out: three tasks, 25 initial states, 1 policy seed (ARGS="..." adds options)
	$(BIN)/python benchmarks/run.py --tasks $(TASKS) --policy-seeds 1 $(ARGS)

benchmark-full: setup ## the paper's protocol: three tasks, 25 initial states, 5 policy seeds
	$(BIN)/python benchmarks/run.py --tasks $(TASKS) --policy-seeds 5 $(ARGS)

benchmark-robustness: setup ## other initial states, then every variation: table and heat map, 25 rollouts a task each
	$(BIN)/python benchmarks/run.py --tasks $(TASKS) --policy-seeds 1 --state-seed 777000 --num-states 25 $(ARGS)
	$(BIN)/python benchmarks/robustness.py --tasks $(TASKS) $(ARGS)

docs: setup ## build the documentation site in build/site; warnings are errors
	$(BIN)/python -m mkdocs build --strict -f docs/site/mkdocs.yml

notebook: setup ## run examples/par_agent_tour.ipynb anew, with its outputs, in some minutes
	$(BIN)/python docs/site/run_notebook.py examples/par_agent_tour.ipynb

lint: setup ## style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy par_agent benchmarks

test: lint ## style, types and the test suite (ARGS="--run-slow" for the slow tests too)
	$(PYTEST) $(ARGS)

test-under-load: setup ## the test suite while two busy loops compete for the processor
	@trap 'kill $$(jobs -p)' EXIT; for loop in 1 2; do (while :; do :; done) & done; $(PYTEST) $(ARGS)

test-other-processor: setup ## the test suite as on a processor without AVX512, with two threads
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(ARGS)
