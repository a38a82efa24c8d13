# Plant: `make help` says what there is. Needs make and Python 3.11, 3.12 or 3.13, and nothing else.
# The package index is the environment's: PIP_INDEX_URL, UV_DEFAULT_INDEX, SSL_CERT_FILE and proxies are respected.

.DEFAULT_GOAL := help
.PHONY: help setup up down demo test test-system test-quick faults containers check bench bench-peers mutants clean
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
MUTANTS := $(VENV)-mutants
PEERS := $(VENV)-peers
MADE := $(VENV) $(MUTANTS) $(PEERS) mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
EXECUTE ?=
MODULES ?=
PYTHON ?=
CI ?=
COVERAGE ?=
# Percent of branches and lines that must have run: of all packages together, and of database and entities by themselves.
COVERAGE_FLOOR := 90
# Processes that run tests; each file's tests stay in one of them. Tests wait as well as compute, so there are more than
# cores; those of whole systems start many processes each.
TEST_PROCESSES ?= 6
SYSTEM_TEST_PROCESSES ?= 4
CONTAINER_TESTS ?= tests/containers
COVERED := $(BIN)/coverage report --fail-under=$(COVERAGE_FLOOR)
# In a variable: a comma in a call of make's ends its argument.
CORE := database/*,entities/*
# Measured where it is judged: by probes, which cost a tenth of what coverage.py's own tracer does.
MEASURED := $(filter 1 true,$(CI) $(COVERAGE))
# What Python has compiled is kept in the environment's folder, also where PYTHONDONTWRITEBYTECODE is set: each process
# that a test starts would else compile all that it imports, which is half of its processor time.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/$(VENV)/pycache
# A file's tests stay in one process, which starts what they share once. Files go out in the order of their folders: those
# with few and long tests first, so that no process is left alone with one of them at the end.
PYTEST := $(BIN)/python -m pytest --ignore tests/containers -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# uv has names of its own for the index; pip's are passed on where uv's are not set.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_EXTRA_INDEX_URL
export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
endif
UV := UV_PYTHON_DOWNLOADS=never $(BIN)/uv

# Packages are installed from an exported, hashed list and not by `uv sync`, which would go to the addresses written in
# uv.lock and pass over a configured index.
define install
	@echo "==> Installing $(1) into $(VENV) (versions and hashes from uv.lock)"
	@$(UV) export --quiet --frozen --no-emit-project --format requirements.txt $(2) --output-file $(VENV)/requirements.txt
	@$(UV) pip install --python $(BIN)/python --require-hashes --requirements $(VENV)/requirements.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@
endef

help: ## Say what there is.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready-all ## Make .venv with all that development needs.
	@echo "Ready. Next: make demo, make test, or make help."

up: $(VENV)/.ready-demo ## Start Kafka and Postgres on this machine.
	@$(BIN)/plant up

down: $(VENV)/.ready-demo ## Stop them; data is kept.
	@$(BIN)/plant down

demo: $(VENV)/.ready-demo ## Run the main job on real input; leaves no process behind.
	@$(BIN)/plant demo

test: $(VENV)/.ready-all ## Run unit and integration tests. With CI=true or COVERAGE=1 coverage must be 90 %.
	@rm -f .coverage .coverage.*
	@$(if $(MEASURED),PYTEST_PLUGINS=tests.support.measured_lines) $(PYTEST) --ignore tests/faults --ignore tests/end_to_end
	@$(if $(MEASURED),$(COVERED) --skip-covered)
	@$(if $(MEASURED),echo "==> coverage of database and entities"; $(COVERED) --format=total --include='$(CORE)')

test-system: $(VENV)/.ready-all ## Run the demo, what the docs show, and process faults under load in their short form.
	@$(PYTEST) -n $(SYSTEM_TEST_PROCESSES) tests/faults tests/end_to_end

test-quick: $(VENV)/.ready-all ## Run the unit tests, and those of the database.
	@$(PYTEST) tests/integration/database tests/unit

faults: $(VENV)/.ready-all ## Process faults and others in their long form: many kills, Postgres away for 30 s, times judged. Hours.
	@PLANT_FAULT_LONG=1 PLANT_FAULT_ROUNDS=$${PLANT_FAULT_ROUNDS:-10} PLANT_FAULT_AWAY_SECONDS=30 PLANT_FAULT_REBALANCES=100 PLANT_FAULT_MIXES=20 PLANT_FAULT_STEPS=40 PLANT_FAULT_ROWS=1000000 PLANT_FAULT_TIMES=1 $(BIN)/python -m pytest tests/faults $$(grep -rl 'long_form import' tests/integration) -rP

containers: $(VENV)/.ready-all ## Build the image, and run the compose file and tests in containers; installs podman by apt, as root.
	@$(BIN)/python -m tests.containers.engine
	@$(BIN)/python -m pytest $(CONTAINER_TESTS) -rP

check: $(VENV)/.ready-all ## Check style, types, import contracts and the lock of read models.
	@echo "==> ruff"; $(BIN)/ruff check && $(BIN)/ruff format --check
	@echo "==> mypy"; $(BIN)/mypy
	@echo "==> import contracts"; $(BIN)/lint-imports
	@echo "==> read models"; $(BIN)/plant projections check

bench: $(VENV)/.ready-all ## Measure; a table and JSON.
	@$(BIN)/python -m benchmarks

bench-peers: $(PEERS)/.ready ## Measure Plant beside Faust, Quix Streams and Kafka Connect, in one run.
	@$(BIN)/python -m benchmarks.peers

mutants: $(MUTANTS)/.ready ## Put small faults into the code and count those that tests catch (MODULES=..., hours for all).
	@$(MUTANTS)/bin/python -m tests.support.mutants $(MODULES)

clean: ## Say what EXECUTE=1 removes: the local stack with its data, .venv and caches of this folder.
	@if [ -x $(BIN)/plant ]; then $(BIN)/plant down --delete-data $(if $(EXECUTE),--execute); fi
	$(if $(EXECUTE),,@echo "would remove $(MADE); run make clean EXECUTE=1 to do it")
	$(if $(EXECUTE),rm -rf $(MADE))

$(BIN)/uv: .ci/uv.txt .ci/make-venv
	@.ci/make-venv $(VENV) $(PYTHON)
	@touch $@

$(VENV)/.ready-demo: uv.lock pyproject.toml $(BIN)/uv
	$(call install,what the demo needs,--no-default-groups --group stack)

# All of it includes what the demo needs, so `make demo` after `make test` has nothing to do.
$(VENV)/.ready-all: uv.lock pyproject.toml $(BIN)/uv
	$(call install,everything,--all-groups)
	@touch $(VENV)/.ready-demo

# Apart from .venv, as nothing of Plant is to depend on it.
$(PEERS)/.ready: .ci/peers.txt $(VENV)/.ready-all
	@$(UV) venv --quiet --clear --python $(BIN)/python $(PEERS)
	@$(UV) pip install --quiet --python $(PEERS)/bin/python --require-hashes --requirements .ci/peers.txt
	@touch $@

# Apart from .venv: mutmut wants a newer click than faust-streaming allows.
$(MUTANTS)/.ready: .ci/mutants.txt $(VENV)/.ready-all
	@$(UV) venv --quiet --clear --python $(BIN)/python $(MUTANTS)
	@$(UV) pip install --quiet --python $(MUTANTS)/bin/python --require-hashes --requirements $(VENV)/requirements.txt
	@$(UV) pip install --quiet --python $(MUTANTS)/bin/python --require-hashes --requirements .ci/mutants.txt
	@$(UV) pip install --quiet --python $(MUTANTS)/bin/python --no-deps --editable .
	@touch $@
