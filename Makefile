# The two commands of a fresh clone are `make benchmark` and `make test`; both run `make setup` first.
BIN := .venv/bin
TASKS := PushCube PickCube StackCube

.DEFAULT_GOAL := help
.PHONY: help setup benchmark benchmark-full benchmark-robustness test lint

help: ## show these lines
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1|/' | while IFS='|' read -r name text; do printf '  make %-20s %s\n' "$$name" "$$text"; done

setup: ## make .venv, install everything, check that there is a renderer (again at no cost when done)
	@bash .ci/setup.sh

benchmark: setup ## roll the bundled policy out: three tasks, 25 initial states, 1 policy seed (ARGS="..." adds options)
	$(BIN)/python benchmarks/run.py --tasks $(TASKS) --policy-seeds 1 $(ARGS)

benchmark-full: setup ## the paper's protocol: three tasks, 25 initial states, 5 policy seeds
	$(BIN)/python benchmarks/run.py --tasks $(TASKS) --policy-seeds 5 $(ARGS)

benchmark-robustness: setup ## unseen initial states and one change at a time, 25 rollouts a task each
	$(BIN)/python benchmarks/run.py --tasks $(TASKS) --policy-seeds 1 --state-seed 777000 --num-states 25 $(ARGS)
	for variation in camera dim bright color delay shader; do \
	  $(BIN)/python benchmarks/run.py --tasks $(TASKS) --policy-seeds 1 --variation $$variation $(ARGS) || exit; \
	done

lint: setup ## style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy par_agent

test: lint ## style, types and the test suite (ARGS="--run-slow" for the slow tests too)
	$(BIN)/python -m pytest $(ARGS)
