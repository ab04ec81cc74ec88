# Each target does its own set-up: a virtual environment in .venv, the pinned packages, the native build.
PYTHON ?= python3
CXX ?= g++
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check -c constraints.txt
EXTRAS := all,cpu,dali,bench,test,dev
NATIVE := setup.py $(shell find csrc -type f)

DEMO := build/demo
# A first look in minutes: fewer and smaller pictures than cmx simulate draws, and a shorter training than the preset's.
DEMO_ROOMS := --rooms 24 --train-pairs 7 --test-pairs 3 --val-pairs 0 --image-size 128
DEMO_TRAINING := --set speech_steps=400 --set crop_seconds=3 --set head_steps=200 --set evaluations=2
SEEDS ?= 1
PROCESSES ?= 2
LATEST := .venv-latest
LATEST_TORCH ?= 2.13.0

.PHONY: install build wheel demo demo-people test test-examples test-torchcodec gates bench docs lint format sanitize compile-cuda \
	test-torch-latest clean
.DELETE_ON_ERROR:

install: build

build: build/.built

# What cannot be installed without root is asked for in one line each.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON); install Python 3.11 or later, or use make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11; use make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make virtual environments; install python3-venv" >&2; exit 1; }
	@command -v $(CXX) >/dev/null || { echo "make: no C++ compiler $(CXX); install g++" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s, sys; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || { echo "make: no Python.h for $(PYTHON); install python3-dev" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.packages: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -q torch ninja setuptools wheel
	$(PIP) -q --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@

build/.built: $(VENV)/.packages $(NATIVE)
	@mkdir -p build
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

# One wheel for every Python from 3.10, named after the oldest glibc that it runs on. torch's libraries stay torch's.
wheel: build
	rm -rf build/lib* build/bdist* build/wheel dist && $(BIN)/pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --strip -w dist --exclude 'libtorch*' --exclude 'libc10*' build/wheel/*.whl

# Rooms are simulated once; training starts anew each time, so that the table is of the code as it is now. SEEDS=3 adds
# the spread between seeds.
demo: build
	@test -e $(DEMO)/rooms/manifest.csv || $(BIN)/cmx simulate rooms --out $(DEMO)/rooms $(DEMO_ROOMS)
	@rm -rf $(DEMO)/run
	$(BIN)/cmx train csir --data $(DEMO)/rooms --preset demo --model csir --model dscmr $(DEMO_TRAINING) --seeds $(SEEDS) \
		--out $(DEMO)/run

# The parts of people in one's own photographs, on a pretrained encoder: DATA is a folder in ATR's layout, with masks to
# measure by (docs/systems/c2l.md).
demo-people: build
	@test -n "$(DATA)" || { echo "make: give the photographs' folder, DATA=..." >&2; exit 1; }
	@rm -rf $(DEMO)/people
	$(BIN)/cmx train c2l --data "$(DATA)" --preset photos --encoder efficientnet-lite0 --seeds $(SEEDS) --out $(DEMO)/people

# Two processes share the tests, a file at a time: what measures memory measures its own process, and nothing that a
# test decides by is a time. Their threads sleep while they wait: the other process has the core.
test: build
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n $(PROCESSES) --dist loadfile

# What needs packages that make test does without: sentence-transformers, transformers, accelerate, datasets.
test-examples: build
	$(PIP) -q --no-build-isolation -e '.[$(EXTRAS),examples]'
	OMP_WAIT_POLICY=passive $(BIN)/pytest tests/examples tests/losses/test_sentence_transformers.py tests/test_patch.py \
		tests/prepare/test_packed.py

# What TorchCodec changes, where it finds FFmpeg's libraries: the files that ask for it by name. All others decode with
# PyAV, with FFmpeg there or not.
test-torchcodec: build
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n $(PROCESSES) --dist loadfile $$(grep -rl torchcodec tests --include='test_*.py')

# Every kernel compiled for four chips with nothing kept from before, and the operators' launches counted. Needs no GPU.
gates: build
	rm -rf build/triton && TRITON_CACHE_DIR=$(CURDIR)/build/triton $(BIN)/pytest -q tests/kernels/test_compile.py \
		tests/kernels/test_compile_others.py tests/kernels/test_launches.py tests/cuda/test_compile_cuda.py

bench: build
	$(BIN)/cmx bench

# The documentation's site, in build/docs. A link or a docstring that can't be read is an error.
docs: build
	$(PIP) -q --no-build-isolation -e '.[$(EXTRAS),docs]'
	$(BIN)/python -m sphinx -E -q -W --keep-going -d build/doctrees docs build/docs
	@echo build/docs/index.html

lint: $(VENV)/.packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(find csrc tests/cuda -name '*.py' -prune -o -type f ! -path '*/__pycache__/*' -print)
	$(BIN)/mypy

format: $(VENV)/.packages
	$(BIN)/clang-format -i $$(find csrc tests/cuda -name '*.py' -prune -o -type f ! -path '*/__pycache__/*' -print)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Compiles every CUDA source for every architecture, prints registers and spills, and fails on a spill. Needs no GPU.
compile-cuda: $(VENV)/.packages
	$(BIN)/python tests/support/cuda_compiler.py

# The C++ operators' tests, and the losses at all magnitudes, under AddressSanitizer and UndefinedBehaviorSanitizer, in a
# copy of the tree (5 minutes). Left out: what measures memory, and what compiles code of its own.
sanitize: $(VENV)/.packages
	rm -rf build/sanitize && mkdir -p build/sanitize && git ls-files -z | xargs -0 cp --parents -t build/sanitize
	cd build/sanitize && CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1" \
		LDFLAGS="-fsanitize=address,undefined" $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd build/sanitize && export LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:log_path=report UBSAN_OPTIONS=print_stacktrace=1:log_path=report && \
		{ $(CURDIR)/$(BIN)/python -m pytest -q -p no:cacheprovider tests/ops \
		-k "not compile and not opcheck and not score_matrix and not memory" && \
		$(CURDIR)/$(BIN)/python -m benchmarks.robustness.fuzz --tries 1000 --only "extreme info_nce" "extreme supcon" \
		"extreme attention" "extreme cluster loss" "extreme softmax block"; } || { cat report.*; exit 1; }

# The wheel built against the pinned torch runs, unchanged, under a newer one: that is what the stable ABI promises. The
# tests run where the source tree is out of reach, and with nothing but torch and NumPy: torchvision and torchaudio would
# bring another torch.
test-torch-latest: wheel
	test -e $(LATEST)/.packages || { $(PYTHON) -m venv $(LATEST) && \
		$(LATEST)/bin/pip install -q --disable-pip-version-check torch==$(LATEST_TORCH) 'numpy<2.4' hypothesis pytest && \
		touch $(LATEST)/.packages; }
	$(LATEST)/bin/pip install -q --disable-pip-version-check --no-deps --force-reinstall dist/*.whl
	rm -rf build/latest && mkdir -p build/latest && cp -r tests build/latest
	cd build/latest && $(CURDIR)/$(LATEST)/bin/pytest -c $(CURDIR)/pyproject.toml --rootdir . -p no:cacheprovider tests/ops

clean:
	rm -rf build dist *.egg-info cmx_fast/_C*.so cmx_fast/_host*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
