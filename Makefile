# `make demo` and `make test` do all the set-up themselves; nothing is installed outside .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Without an NVIDIA GPU take PyTorch's CPU build where its index can be reached: the default one brings gigabytes of CUDA.
CPU_TORCH := $(if $(shell command -v nvidia-smi),,--index-url https://download.pytorch.org/whl/cpu --timeout 5 --retries 0)

# NVIDIA Dynamo's mocker, a simulator to compare with, in an environment of its own.
MOCKER := ai-dynamo-runtime==1.6.1 ai-dynamo==1.6.1 numpy typing_extensions

.PHONY: demo test bench lint clean

demo: .venv/installed
	$(BIN)/amin demo --out demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2

bench: .venv/installed
	test -x .venv-mocker/bin/python || $(PYTHON) -m venv .venv-mocker
	.venv-mocker/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(MOCKER) || rm -rf .venv-mocker
	$(BIN)/python -m pipelines.bench --out bench --mocker .venv-mocker/bin/python

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	$(PIP) torch $(CPU_TORCH) 2>/dev/null || $(PIP) torch
	$(PIP) --editable '.[train,dev]'
	touch $@

clean:
	rm -rf .venv .venv-mocker demo bench
