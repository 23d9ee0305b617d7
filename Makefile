# Leave PYTHON alone to use .venv where it exists, else python3.
PYTHON ?= $(shell test -x .venv/bin/python && echo .venv/bin/python || echo python3)
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format docs doctor clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## build .venv with the tested versions and mmcv's operators (once; then at once)
	@$(PYTHON) tools/setup_env.py

demo: ## train on the built-in Shapes data, small enough for two CPU cores
	@$(PYTHON) tools/setup_env.py --without-operators
	@$(RUN) tools/demo.py

test: setup ## run the tests, a file a core
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup ## check format, lint and types; change nothing
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy
	@$(RUN) tools/readme_tables.py

format: setup ## format the code and repair what ruff can
	@$(RUN) -m ruff check --fix-only .
	@$(RUN) -m ruff format .

docs: setup ## build the site of docs/ in build/docs; a warning stops it
	@$(RUN) -m sphinx -W --keep-going -q -d build/doctrees docs build/docs

doctor: ## say what is wrong with the environment and how to repair it
	@$(PYTHON) tools/doctor.py

clean: ## remove caches and build leftovers; .venv, data and work_dirs stay
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
