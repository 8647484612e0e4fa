# Builds, checks and shows ivdtool in a virtual environment of its own, .venv. Stamp files in it say
# what is installed, so a second run is quick.
#
#   make demo       label a synthetic spine: demo/ gets the image, its labels and a picture
#   make test       the test suite
#   make lint       all style, type, warning and clang-tidy checks; `make format` mends layout
#   make sanitize   the tests of the compiled kernels under address and undefined-behaviour checks
#   make fuzz       made-up arguments for the compiled kernels under the same checks
#   make threads    the same from several threads at once, under the thread sanitizer
#   make benchmark  the answers of all that `ivdtool benchmark` compares, at small sizes
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
.PHONY: demo test lint format sanitize fuzz threads benchmark clean

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

CPP := $(wildcard csrc/*.cpp csrc/*.hpp)
FUZZ := tests/fuzz_kernels.cpp tests/fuzz_main.cpp
KERNELS := heatmaps candidates search invariances core_boundary core_stub

demo: $(VENV)/.installed
	rm -rf demo
	ivdtool phantom -o demo --seed 7 --region lumbar --contrast T2w
	ivdtool label demo/sub-*/anat/*.nii.gz -o demo/discs.nii.gz --qc demo/discs.png

test: $(VENV)/.installed $(VENV)/.dev
	python -m pytest

lint: $(VENV)/.installed $(VENV)/.dev
	ruff check
	ruff format --check
	mypy
	clang-format --dry-run --Werror $(CPP) $(FUZZ)
	cmake -S . -B build/lint -G Ninja -D CMAKE_BUILD_TYPE=Debug -D IVDTOOL_WERROR=ON \
	  -D Python_EXECUTABLE=$(BIN)/python -D pybind11_DIR="$$(pybind11-config --cmakedir)" \
	  -D CMAKE_EXPORT_COMPILE_COMMANDS=ON >/dev/null
	cmake --build build/lint
	printf '%s\n' csrc/*.cpp | xargs -P "$$(nproc)" -n 1 clang-tidy --quiet -p build/lint

format: $(VENV)/.dev
	ruff check --fix --exit-zero
	ruff format
	clang-format -i $(CPP) $(FUZZ)

# A second environment borrows everything from the first one but ivdtool itself: the line in its .pth
# file adds a folder to the path without running the editable-install hook in it, which would bring
# the build without checks back. ASan must come first in the process, and libstdc++ with it, else the
# first C++ exception aborts.
# TSan knows nothing of Python's own locks, but these order no memory of the kernels' own; it does not
# start under Linux kernels that place a program more at random than gcc 12 expects.
sanitize fuzz: SANITIZERS := address,undefined
sanitize fuzz: RUNTIME := libasan.so
threads: SANITIZERS := thread
threads: RUNTIME := libtsan.so
SANITIZED = build/$(basename $(RUNTIME))
SANITIZED_PYTHON = $(NOT_RANDOM) env $(SANITIZED_ENV) $(SANITIZED)/venv/bin/python
SANITIZED_ENV = LD_PRELOAD="$$(g++ -print-file-name=$(RUNTIME)) $$(g++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  TSAN_OPTIONS=halt_on_error=1
NOT_RANDOM := $(shell setarch -R true 2>/dev/null && echo setarch -R)
define BUILD_SANITIZED
test -e "$$(g++ -print-file-name=$(RUNTIME))" || {
  echo "make $@: g++ has no $(RUNTIME); install it: gcc on Debian, libasan and libtsan on Fedora" >&2
  exit 1
}
test -x $(SANITIZED)/venv/bin/python || python -m venv --without-pip $(SANITIZED)/venv
python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  > "$$($(SANITIZED)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tools.pth"
$(SANITIZED)/venv/bin/python -m pip install --quiet --ignore-installed --no-deps --no-build-isolation \
  -C build-dir=$(SANITIZED)/cmake -C cmake.build-type=RelWithDebInfo -C install.strip=false \
  -C cmake.define.IVDTOOL_SANITIZE=$(SANITIZERS) .
$(SANITIZED_PYTHON) -c 'from ivdtool import _core; print(_core.__file__)' | grep $(SANITIZED)
endef

SECONDS_OF_FUZZING ?= 60
sanitize fuzz threads: $(VENV)/.installed $(VENV)/.dev
sanitize:
	$(BUILD_SANITIZED)
	$(SANITIZED_PYTHON) -m pytest $(KERNELS:%=tests/test_%.py)
fuzz: build/fuzz/kernels
	mkdir -p build/fuzz/inputs
	$(NOT_RANDOM) build/fuzz/kernels -max_total_time=$(SECONDS_OF_FUZZING) -verbosity=0 \
	  -print_funcs=0 -print_final_stats=1 -artifact_prefix=build/fuzz/ build/fuzz/inputs
	$(BUILD_SANITIZED)
	$(SANITIZED_PYTHON) -m tests.fuzz_core --seconds $(SECONDS_OF_FUZZING)
threads:
	$(BUILD_SANITIZED)
	$(SANITIZED_PYTHON) -m tests.fuzz_core --seconds $(SECONDS_OF_FUZZING) --threads 4

# The kernels without Python: by libFuzzer, which follows what inputs reach, else on random bytes.
CLANG ?= clang++
build/fuzz/kernels: $(FUZZ) $(CPP)
	mkdir -p $(@D)
	compiler="g++ tests/fuzz_main.cpp"
	if echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
	    $(CLANG) -fsanitize=fuzzer -x c++ - -o $@ 2>/dev/null; then compiler="$(CLANG) -fsanitize=fuzzer"
	else echo "no $(CLANG) with libFuzzer, so random bytes; once there is (Debian: clang), make clean"; fi
	$$compiler -std=c++17 -O1 -g -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror \
	  -fsanitize=address,undefined -fno-sanitize-recover=undefined \
	  -I csrc tests/fuzz_kernels.cpp $(filter-out csrc/bindings.cpp,$(filter %.cpp,$(CPP))) -o $@

benchmark: $(VENV)/.installed $(VENV)/.dev $(VENV)/.benchmark
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

$(VENV)/.benchmark: $(VENV)/.installed
	$(PIP) --no-build-isolation --editable .[benchmark]
	touch $@

$(VENV)/.dev: $(VENV)/.build
	$(PIP) --group dev
	touch $@
