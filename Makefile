# `make demo` and `make test` are all a newcomer needs; each sets up .venv on first use.
# Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev
# Two processes of tests with a thread each; a file's tests stay together. More: make TEST_PROCESSES=8 test
TEST_PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
# A CPU without AVX-512 and bfloat16, pretended to torch, oneDNN and MKL.
OLD_CPU := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
# What computes, against references and plain paths; not what compares a path with itself.
NUMBERS := tests/golden tests/parity $(addprefix tests/unit/,models generation objectives) \
	$(addprefix tests/unit/training/test_,muon.py optim.py) \
	$(addprefix tests/unit/core/test_,core_compute.py old_cpu.py) \
	$(addprefix --ignore=tests/unit/generation/test_,replay.py waits.py)
# Where it is set, as in many containers, each of some sixty processes of the tests compiles the Python files of torch
# and of what else it imports anew, for longer than the test itself takes.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-quick test run-tests test-all test-slow test-old-cpu test-old-cpu-numbers \
	lint types docs bench constraints clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

setup: .venv/.ready ## set up .venv with the tested versions

.venv/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; install Python 3.11 or newer, or say make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) --version) is too old; OpenBLIP needs Python 3.11 or newer (make PYTHON=python3.12)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "make: this Python cannot make virtual environments; install its venv package (on Debian: apt install python3-venv)"; exit 1; }
	@echo "setting up .venv (a few GB of PyTorch; once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: setup ## BLIP, CapFilt and BLIP-2 from scratch in the synthetic world; writes runs/demo/report.html (planned for 15 minutes on this CPU)
	@$(BIN)/openblip demo

demo-quick: setup ## the same in two minutes, for a look
	@$(BIN)/openblip demo --quick

test: setup lint ## lint, types and the tests that take at most a few seconds each
	@# What mypy says may stand far above the tests' last lines, so it says it again where one of the two failed.
	@$(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,--jobs 2) types run-tests || { $(BIN)/mypy; exit 1; }

run-tests: setup
	@$(PYTEST) $(if $(filter all,$(TESTS)),,-m "not slow")

test-all: export TESTS := all
test-all: test ## `test` and `test-slow` in one run, which takes less than one after the other

test-slow: setup ## the other tests: whole trainings, killed commands, several processes, exports
	@$(PYTEST) -m slow

test-old-cpu: setup ## the fast tests and a demo of two minutes with the instructions of an older CPU (AVX2)
	@$(OLD_CPU) $(PYTEST) -m "not slow"
	@$(OLD_CPU) $(BIN)/openblip demo --minutes 2 --out runs/demo-old-cpu

test-old-cpu-numbers: setup ## the part of it that compares numbers
	@$(OLD_CPU) $(PYTEST) -m "not slow" $(NUMBERS)

lint: setup ## ruff, rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## mypy
	@$(BIN)/mypy

docs: setup ## the documentation as a site: build/site/index.html; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: setup ## every benchmark, beside its peer
	@$(BIN)/python -m benchmarks compare blip-pretrain
	@$(BIN)/python -m benchmarks compare loader

constraints: setup ## write the installed versions to constraints.txt
	@$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' | grep -vE '^((uv|pip)==|nvidia|cuda|triton)' > constraints.txt

clean: ## remove the environment, caches and the runs folder
	rm -rf .venv .venv-newest .venv-oldest runs build .pytest_cache .ruff_cache .mypy_cache
