# Two commands for a newcomer: `make demo` and `make test`. Each installs what it needs into .venv first.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
TORCH  := 2.13.0
VISION := 0.28.0
READY  := $(VENV)/.ready
LIBRARY := eeg_gan/_C.json
TORCHES ?= 2.11.0 2.14.1
SEEDS  ?= 20
KILLS  ?= 30
SEED   ?= 0
AUDIT  ?= source.simulated.image_size=16

.PHONY: demo test lint ci test-heavy test-kill test-asan test-wheel test-big test-slurm audit-seeds clean check-machine install

# What a part took, and its exit code.
timed = start=$$SECONDS; $(2); code=$$?; echo "$(1) took $$((SECONDS - start)) s"; exit $$code
SETTINGS = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} HF_HUB_OFFLINE=1

demo: install
	$(PY) -m eeg_gan demo $(DEMO)

test: install lint
	@$(call timed,make test,$(SETTINGS) $(PY) -m pytest $(TESTS))

lint: install
	$(PY) -m ruff check .

# What continuous integration runs: about an hour on two cores.
ci:
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test-heavy
	@$(MAKE) --no-print-directory test-kill
	@$(MAKE) --no-print-directory test-asan
	@$(MAKE) --no-print-directory test-slurm
	@$(MAKE) --no-print-directory audit-seeds SEEDS=3
	@$(MAKE) --no-print-directory test-wheel TORCHES=2.11.0

test-heavy: install
	@$(call timed,make test-heavy,$(SETTINGS) $(PY) -m pytest -m heavy --timeout=1800 $(TESTS))

# KILLS runs killed by SIGKILL at random moments and within saves, each continued to the end of an unbroken one.
test-kill: install
	@$(call timed,make test-kill,HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=. $(PY) tests/kill/killing.py $(KILLS) $(SEED))

# The CPU kernels and the simulated CUDA kernels under AddressSanitizer and UBSan, over the shapes of their tests: five to
# nine minutes of one core, half of which compile.
test-asan: install
	@$(call timed,make test-asan,PYTHON=$(PY) tests/asan.sh)

# The wheel in environments with other versions of torch, 5.5 GB each while it runs: TORCHES="2.11.0 2.14.1".
test-wheel: install
	@$(call timed,make test-wheel,PYTHON=$(PY) tests/wheel/run.sh $(TORCHES))

# The audit of simulated data, confounded and clean, over seeds; exits with 1 where a verdict is wrong.
audit-seeds: install
	@$(call timed,make audit-seeds,PYTHONPATH=. OMP_NUM_THREADS=1 $(PY) tests/bench/audit_seeds.py $(SEEDS) $(AUDIT))

# The launcher on a real SLURM cluster of two nodes on this machine, from Debian's packages; needs root, and skips without.
test-slurm: install
	@$(call timed,make test-slurm,OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -m slurm -rs --durations=0 $(or $(TESTS),tests/slurm))

# Tensors of more than 2^31 elements: 20 GB of memory.
test-big: install
	@$(call timed,make test-big,$(SETTINGS) $(PY) -m pytest -m big --timeout=3600 $(TESTS))

install: $(LIBRARY)

# pip hides what the build says; this says it, and compiles what has changed since.
$(LIBRARY): $(READY) $(wildcard csrc/*) setup.py
	@$(PY) setup.py -q build_ext --inplace

# pip is asked twice: a configured local index may offer the CPU build under its local version; if not, pip's own choice.
$(READY): pyproject.toml setup.py Makefile
	@$(MAKE) --no-print-directory check-machine
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  $(PY) -m pip install -q torch torchvision; \
	elif ! $(PY) -c 'import torch' 2>/dev/null; then \
	  echo "no GPU: installing torch $(TORCH) and torchvision $(VISION) together"; \
	  $(PY) -m pip install -q --retries 0 "torch==$(TORCH)+cpu" "torchvision==$(VISION)" 2>/dev/null \
	    || $(PY) -m pip install -q "torch==$(TORCH)" "torchvision==$(VISION)"; \
	fi
	@$(PY) -m pip install -q "setuptools>=77" wheel ninja
	@echo "installing eeg-gan and what it needs"
	@$(PY) -m pip install -q --no-build-isolation -e ".[test]"
	@touch $(READY)

check-machine:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: sudo apt install python3 python3-venv"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "eeg-gan needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V). Debian 12 has it: sudo apt install python3 python3-venv, or make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv is missing: sudo apt install python3-venv"; exit 2; }

clean:
	rm -rf build eeg_gan/_C.so eeg_gan/_C.json *.egg-info .pytest_cache .ruff_cache
