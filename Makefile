# Everything here makes .venv and installs into it by itself: it needs Python 3.11, make and the package registries.

study = mnist_prune
args =

# Words like `fresh=true` or `study.budget.trials=3` are variables to make; they are passed on as they were given.
quoted = '$(subst ','\'',$(1))'
given = $(foreach name,$(sort $(.VARIABLES)),$(if $(filter command,$(origin $(name))),$(name)))
overrides = $(foreach name,$(filter-out study args PYTHON,$(given)),$(call quoted,$(name)=$(value $(name))))

define HELP
make run [study=NAME] [SETTING=VALUE ...]   search a study's Pareto front, or resume where it stopped
make ui                                     look at the trials in MLflow's UI
make dashboard                              look at the studies in Optuna's dashboard
make schedule                               start the sweeps of experiments/schedule when they are due
make test [args="-k data"]                  run the tests
make test-cluster                           the slow ones: real clusters, servers and kills, ten minutes or more
make pictures                               the README's pictures, of the recorded study mnist_prune
make check                                  format, lint and types
make clean-cache                            remove cached data, dense baselines and teacher logits

Examples
  make run study=mnist_prune
  make run study=smoke fresh=true study.budget.trials=5
  make run study=smoke args="--help"        all settings; args= takes other options too, such as --multirun

Studies
endef
export HELP

.PHONY: help run ui dashboard schedule pictures test test-cluster check clean-cache gone
.DEFAULT_GOAL := help

help:
	@echo "$$HELP"
	@ls experiments/study | sed -n 's/^\(.*\)\.yaml$$/  \1/p'

run: .venv/.run
	@.venv/bin/python -m search.run $(call quoted,study=$(study)) $(overrides) $(args)

ui: .venv/.run
	@.venv/bin/python -m search.ui $(overrides) $(args)

dashboard: .venv/.dev
	@.venv/bin/python -m search.dashboard $(overrides) $(args)

schedule: .venv/.run
	@.venv/bin/python -m search.schedule run $(overrides) $(args)

pictures: .venv/.dev
	@.venv/bin/python -m benchmarks.pictures $(args)

test: .venv/.dev
	@.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(args)

test-cluster: .venv/.dev
	@.venv/bin/python -m pytest -m cluster $(args)

check: .venv/.dev
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m mypy .

clean-cache:
	rm -rf mlruns/cache

# A .venv whose Python has gone is made again, whatever its stamps say.
.venv/.run .venv/.dev: pyproject.toml constraints.txt $(shell test -x .venv/bin/python || echo gone)
	@for python in $(PYTHON) python3.11 python3 python; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	        exec $$python install.py $(patsubst .%,%,$(notdir $@)); \
	    fi; \
	done; \
	echo "make: no Python 3.11 found (looked for$(if $(PYTHON), $(PYTHON),) python3.11, python3 and python)." \
	    "Install it, for example with 'apt install python3.11 python3.11-venv', 'brew install python@3.11' or" \
	    "'pyenv install 3.11', or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1
