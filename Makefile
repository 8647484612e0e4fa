# Builds, checks and shows ivdtool in a virtual environment of its own, .venv. Stamp files in it say
# what is installed, so a second run is quick.
#
#   make demo       label a synthetic spine: demo/ gets the image, its labels and a picture
#   make test       the test suite
#   make lint       all style, type and warning checks; `make format` mends what can be mended
#   make sanitize   the tests of the compiled kernels under address and undefined-behaviour checks
#   make benchmark  the time of each stage beside its baseline
#   make clean      remove what was built, but not .venv
#
# Variables: PYTHON (3.11 or newer) makes the environment, VENV is its folder. pip obeys its own
# environment variables: outside macOS, for the small build of torch without CUDA, set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: demo test lint format sanitize benchmark clean

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

CPP := $(wildcard csrc/*.cpp csrc/*.hpp)
KERNELS := heatmaps candidates search core_boundary core_stub

demo: $(VENV)/.installed
	rm -rf demo
	ivdtool phantom -o demo --seed 7 --region lumbar --contrast T2w
	ivdtool label demo/sub-*/anat/*.nii.gz -o demo/discs.nii.gz --qc demo/discs.png

test: $(VENV)/.installed $(VENV)/.dev
	python -m pytest

lint: $(VENV)/.dev
	ruff check
	ruff format --check
	mypy
	clang-format --dry-run --Werror $(CPP)
	cmake -S . -B build/lint -G Ninja -D CMAKE_BUILD_TYPE=Debug -D IVDTOOL_WERROR=ON \
	  -D Python_EXECUTABLE=$(BIN)/python -D pybind11_DIR="$$(pybind11-config --cmakedir)" >/dev/null
	cmake --build build/lint

format: $(VENV)/.dev
	ruff check --fix --exit-zero
	ruff format
	clang-format -i $(CPP)

# A second environment borrows everything from the first one but ivdtool itself: the line in its .pth
# file adds a folder to the path without running the editable-install hook in it, which would bring
# the build without checks back. ASan must come first in the process, and libstdc++ with it, else the
# first C++ exception aborts.
SANITIZED := build/sanitize/venv
sanitize: $(VENV)/.installed $(VENV)/.dev
	test -x $(SANITIZED)/bin/python || python -m venv --without-pip $(SANITIZED)
	python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(SANITIZED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tools.pth"
	$(SANITIZED)/bin/python -m pip install --quiet --ignore-installed --no-deps --no-build-isolation \
	  -C build-dir=build/sanitize/cmake -C cmake.build-type=RelWithDebInfo -C install.strip=false \
	  -C cmake.define.IVDTOOL_SANITIZE=address,undefined .
	export LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)"
	export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
	$(SANITIZED)/bin/python -c 'from ivdtool import _core; print(_core.__file__)' | grep $(SANITIZED)
	$(SANITIZED)/bin/python -m pytest $(KERNELS:%=tests/test_%.py)

benchmark: $(VENV)/.installed $(VENV)/.dev
	python -m pytest benchmarks

clean:
	rm -rf build demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

# --- the environment

$(VENV)/.build: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --group build
	touch $@

$(VENV)/.installed: $(VENV)/.build CMakeLists.txt $(CPP)
	$(PIP) --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.build
	$(PIP) --group dev
	touch $@
