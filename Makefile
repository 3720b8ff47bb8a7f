# `make demo`, `make test`, `make slow` and `make docs` do all set-up themselves: Python 3.11+, pip, git and make are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
OUT    ?= neuronforget-demo
# Without an NVIDIA driver the CPU build of torch is installed (the default build brings gigabytes of CUDA).
TORCH  ?= $(if $(shell command -v nvidia-smi),torch,torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu)

.PHONY: demo test slow lint docs notebooks clean

demo: $(VENV)/ready
	$(BIN)/neuronforget demo --out $(OUT)

test: $(VENV)/ready-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# The tests that take longest: whole comparisons, studies and audits, trained testbeds, several processes, compiled kernels.
slow: $(VENV)/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/ready-docs
	$(BIN)/python -m sphinx -q -n -W --keep-going -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

notebooks: $(VENV)/ready-notebooks
	OMP_NUM_THREADS=1 $(BIN)/python examples/notebooks.py

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m pip install --user virtualenv && $(PYTHON) -m virtualenv $(VENV); }
	$(BIN)/python -m pip install --quiet --retries 2 $(TORCH)

$(VENV)/ready: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/ready-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/ready

$(VENV)/ready-docs: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@ $(VENV)/ready

$(VENV)/ready-notebooks: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[notebooks]"
	@touch $@ $(VENV)/ready

clean:
	rm -rf $(VENV) build dist *.egg-info
