# Every target makes its own virtual environment first; nothing has to be prepared.
#   make reproduce   run the five notebooks headless, end with the scorecard   (PROFILE=smoke|quick|paper)
#   make test        lint, types, unit tests, notebooks, README
#   make lab         open the notebooks in JupyterLab
#   make bench       side-by-side speed tables
#   make mutants     does a test notice when a line of the core changes? (half an hour)
#   make rehearsal   the paper's run on a drawn set of the official size, in FOLDER (WEIGHTS=FILE of MobileNetV2)
# TORCH_INDEX=<address of PyTorch's own CPU wheel index> takes the CPU builds, a tenth of the size.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
PROFILE ?= quick
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONHASHSEED := 0
# see CPU_SETTINGS in infocam_utils/reproduce/runner.py
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592
export OMP_WAIT_POLICY := PASSIVE

.PHONY: reproduce test lint unit notebooks lab bench mutants rehearsal lock clean help
help:
	@sed -n '2,8s/^# \{0,1\}//p' Makefile

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) lacks the venv module; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@echo "make: installing locked dependencies into $(VENV) (about 5 GB with the CUDA build of torch, some minutes)"
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
ifdef TORCH_INDEX
	@grep -E '^torch(vision)?==' requirements.lock | cut -d' ' -f1 > $(VENV)/torch.txt
	@$(BIN)/python -m pip install -q --no-deps --index-url $(TORCH_INDEX) -r $(VENV)/torch.txt
	@awk '/^[a-z]/ {skip = /^(torch|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z]*)==/} !skip' requirements.lock > $(VENV)/rest.txt
	@$(BIN)/python -m pip install -q --no-deps --require-hashes -r $(VENV)/rest.txt
else
	@$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements.lock
endif
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

reproduce: $(READY)
	@$(BIN)/infocam run --profile $(PROFILE) $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache | tail -n +2

unit: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2  # two workers of one thread: threads that wait for each other cost more

notebooks: $(READY)
	@rm -rf build/notebooks
	@INFOCAM_OUTPUT=$(CURDIR)/build/notebooks OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider \
	  --override-ini addopts= -n 2 --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout 1200 --nbval-sanitize-with tests/nbval_sanitize.cfg notebooks
	@$(BIN)/infocam compare results/quick build/notebooks/results
	@$(BIN)/infocam claims --check

test: lint unit notebooks

lab: $(READY)
	@$(BIN)/jupyter lab notebooks

bench: $(READY)
	@$(BIN)/python -m pip install -q --no-deps torchcam grad-cam ttach opencv-python-headless
	@for b in tests/benchmarks/bench_*.py; do $(BIN)/python $$b; done

mutants: $(READY)
	@$(BIN)/python -m pip install -q mutmut==3.8.1 timm
	@$(BIN)/python tests/mutants.py

FOLDER ?= build/rehearsal
WEIGHTS ?= none
rehearsal: $(READY)
	@$(BIN)/python tests/rehearsal.py --folder $(FOLDER) --weights $(WEIGHTS)

lock:
	@command -v uv >/dev/null || { echo "make lock: needs uv (pip install uv)"; exit 2; }
	@uv pip compile pyproject.toml --extra notebooks --extra test --python-version 3.11 --universal --generate-hashes \
	  --no-header --no-annotate -q -o requirements.lock
	@sed -i '1i # Python 3.11 and newer. Made from pyproject.toml by: make lock' requirements.lock

clean:
	@rm -rf $(VENV) build runs .pytest_cache .mypy_cache .ruff_cache
