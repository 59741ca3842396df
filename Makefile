# Two commands are all it takes on a fresh machine: `make train` and `make test`.
# Each makes the environment first if it is not there; nothing else is needed than Python 3.11 or newer.
#
#   make train TRAIN_ARGS="mechanism=hebb seed=1"   overrides for the training run
#   make test TEST_ARGS="tests/ops -k hebb"         arguments for pytest
#   make bench BENCH_ARGS="fatigue_attention"       words for bouton bench
#   make study STUDY_DATA=stories.txt STUDY_FOLDER=runs/study   the text it trains on, where its runs go
#   make PYTHON=/path/to/python3.12 ...             the Python that the environment is made with

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
TRAIN_ARGS ?=
TEST_ARGS ?= tests
BENCH_ARGS ?=
STUDY_DATA ?=
STUDY_FOLDER ?= runs/study
# About four minutes on two cores, whatever their speed: the schedule ends with the last step, the limit is a safeguard.
TRAIN_RECIPE := mechanism=presyn+hebb experiment=first_run

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CARGO := $(firstword $(shell command -v cargo 2>/dev/null) $(wildcard $(HOME)/.cargo/bin/cargo))
KERNELS := $(VENV)/.kernels-$(if $(CARGO),rust,torch)
RUST_FILES := $(shell find kernels_rs -path '*/target' -prune -o -type f -print 2>/dev/null)
RUST_LOG := $(VENV)/kernels.log
WHEELS := $(VENV)/wheels
# Without a network a dependency of the Rust build that is not cached must fail soon.
MAKE_WHEEL = rm -rf $(WHEELS); PATH="$(dir $(CARGO)):$$PATH" CARGO_NET_RETRY=1 $(BIN)/python -m pip wheel \
	--disable-pip-version-check --no-deps --wheel-dir $(WHEELS) ./kernels_rs >$(RUST_LOG) 2>&1
# One that was made beside the environment, if no source is newer.
HAVE_WHEEL = ls $(WHEELS)/*.whl >/dev/null 2>&1 && \
	test -z "$$(find kernels_rs -path '*/target' -prune -o -type f -newer $(WHEELS) -print)"
BUILD_RUST = { { $(HAVE_WHEEL); } || { $(MAKE_WHEEL); }; } \
	&& $(BIN)/python -m pip install --disable-pip-version-check --no-deps --force-reinstall $(WHEELS)/*.whl >>$(RUST_LOG) 2>&1 \
	&& $(BIN)/python -c 'import bouton_kernels' >>$(RUST_LOG) 2>&1 && rm -rf $(WHEELS)

.DEFAULT_GOAL := help
.PHONY: help env train test lint format types rust test-rust bench study clean

help:
	@echo "make train   train presyn+hebb on the Python standard library, a few minutes"
	@echo "make test    run the tests"
	@echo "make lint    ruff: rules and format          make types  mypy"
	@echo "make rust    build the Rust kernels again    make bench  check and time the ops, a training step"
	@echo "make study   none, presyn, hebb, presyn+hebb with three seeds each, then a report"
	@echo "make clean   remove caches and builds, not the environment and not the runs"

env: $(KERNELS)

train: $(KERNELS)
	$(BIN)/python train.py $(TRAIN_RECIPE) $(TRAIN_ARGS)

test: $(KERNELS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(TEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)
	$(BIN)/mypy

bench: $(KERNELS)
	$(BIN)/bouton bench $(BENCH_ARGS)
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/overhead.py

# A grid ends with 1 if one of its runs crashed; the report says which, so it is written all the same.
study: $(KERNELS)
	-$(BIN)/python train.py -m experiment=ablation/study run_dir=$(STUDY_FOLDER) \
		$(if $(STUDY_DATA),data.path=$(STUDY_DATA),data=stdlib)
	$(BIN)/bouton report $(STUDY_FOLDER)

rust: $(INSTALLED)
	@test -n "$(CARGO)" || { echo "error: cargo is not on this machine: install Rust, then make rust" >&2; exit 1; }
	@echo "kernels: building (log: $(RUST_LOG))"
	@rm -rf $(WHEELS)
	@$(BUILD_RUST) || { tail -n 20 $(RUST_LOG) >&2; exit 1; }
	@touch $(KERNELS)

# A folder of its own: cargo locks it, and a build for Python may be going on.
test-rust:
	@test -n "$(CARGO)" || { echo "error: cargo is not on this machine" >&2; exit 1; }
	cd kernels_rs && $(CARGO) test --target-dir target/tests --no-default-features --lib

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache kernels_rs/target
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamp is the marker of an installation in progress, renamed when it is complete: one that was interrupted leaves
# the marker, and the next starts from an empty environment (pip's cache spares the downloads). One that pip gave up
# by itself leaves a sound environment to try again in.
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed (found: $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1)); name one with make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@if [ -e $(VENV)/.installing ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "environment: $(VENV), $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV) || { \
			echo "error: $(PYTHON) cannot make $(VENV): it needs venv and ensurepip (Debian: apt install python3-venv)" >&2; exit 1; }; \
	fi
	@rm -f $@ && touch $(VENV)/.installing
	@echo "environment: installing Bouton and what it needs"
	@trap 'exit 130' INT TERM; wheel=; failed=; \
	if [ -n "$(CARGO)" ]; then \
		echo "kernels: building the Rust kernels meanwhile (log: $(RUST_LOG))"; { { $(HAVE_WHEEL); } || { $(MAKE_WHEEL); }; } & wheel=$$!; \
	fi; \
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]" || failed=1; \
	if [ -n "$$wheel" ]; then wait $$wheel || true; fi; \
	[ -z "$$failed" ] || { rm -f $(VENV)/.installing; exit 1; }
	@mv $(VENV)/.installing $@ && touch $@

# One of two stamps, so that installing cargo later is noticed. A failed build is said, and tried again by `make rust`
# or when a source changes.
$(KERNELS): $(RUST_FILES) | $(INSTALLED)
ifneq ($(CARGO),)
	@{ $(HAVE_WHEEL); } || echo "kernels: building the Rust kernels, once (log: $(RUST_LOG))"
	@if $(BUILD_RUST); then echo "kernels: Rust kernels installed"; \
		else echo "kernels: the Rust build failed, torch kernels are used (why: $(RUST_LOG); again: make rust)"; fi
else
	@echo "kernels: no cargo on this machine, torch kernels are used (the same results, slower)"
endif
	@touch $@
