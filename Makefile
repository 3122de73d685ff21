# make demo    train, evaluate and show the demo       make test   run the tests
# make setup   only make the environment                make lint   format check, lint, types
# make bench   run all benchmarks                       make demo-table   the README's table, three seeds
# PYTHON=python3.12 and VENV=.venv312 choose the interpreter and the environment.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
OUTPUT ?= output
# two OpenMP threads on a busy machine spin; parallelism comes from processes
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export VENV

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-table test lint bench doctor clean

help:
	@sed -n '1,4s/^# //p' Makefile

setup:
	@bash tools/setup_env.sh

demo: setup
	$(PY) tools/run_demo.py --output $(OUTPUT)/demo

demo-table: setup
	$(PY) tools/run_demo.py --output $(OUTPUT)/demo-table --table

test: setup
	$(PY) -m pytest tests -n auto --maxprocesses 8 $(PYTEST_ARGS)

lint: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: setup
	$(PY) -m benchmarks all

doctor: setup
	$(PY) tools/doctor.py

clean:
	rm -rf $(OUTPUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
