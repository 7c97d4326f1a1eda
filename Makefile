# Two commands for a newcomer: `make demo` and `make test`. Each installs what it needs into .venv first.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
TORCH  := 2.13.0
VISION := 0.28.0
READY  := $(VENV)/.ready

.PHONY: demo test lint ci clean check-machine install

demo: install
	$(PY) -m eeg_gan demo $(DEMO)

test: install lint
	@start=$$SECONDS; OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} HF_HUB_OFFLINE=1 $(PY) -m pytest $(TESTS); code=$$?; \
	echo "make test took $$((SECONDS - start)) s"; exit $$code

lint: install
	$(PY) -m ruff check .

ci: test

install: $(READY)

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
	@command -v g++ >/dev/null || { echo "g++ is missing: sudo apt install g++"; exit 2; }

clean:
	rm -rf build *.egg-info runs .pytest_cache .ruff_cache
