# The front door. Two commands do all the set-up they need: `make demo` and `make test`.

# A distribution builds its Python with profile-guided optimisation, a version manager usually does not, and the program
# then takes a third more time. The distribution's is taken where it can make an environment and build the native part.
WILL_DO := import ensurepip, pathlib, sys, sysconfig as s; \
	sys.exit(sys.version_info < (3, 11) or not pathlib.Path(s.get_path("include"), "Python.h").exists())
PYTHON ?= $(shell /usr/bin/python3 -c '$(WILL_DO)' 2>/dev/null && echo /usr/bin/python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# uv keeps its cache beside the environment where the home folder cannot be written.
ifeq ($(shell mkdir -p "$${XDG_CACHE_HOME:-$$HOME/.cache}/uv" 2>/dev/null && test -w "$${XDG_CACHE_HOME:-$$HOME/.cache}/uv" && echo yes),)
export UV_CACHE_DIR := $(CURDIR)/$(VENV)/.uv-cache
export XDG_CACHE_HOME := $(CURDIR)/$(VENV)/.cache
endif
export PYTHONDONTWRITEBYTECODE :=
export UV_LINK_MODE ?= copy
# Trust what the machine trusts, as pip does.
export UV_SYSTEM_CERTS ?= 1
export UV_NATIVE_TLS ?= 1
UV := $(BIN)/uv

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-cluster native-sanitize fuzz check fix generate docs bench clean
NATIVE_BUILD := build/native-release

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.uv:
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	@touch $@

$(VENV)/.runtime: $(VENV)/.uv pyproject.toml native/pyproject.toml vendors/simulated/pyproject.toml vendors/nvidia/pyproject.toml
	@echo "installing tensorfusion and its vendor plugins"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet --compile-bytecode -e . -e native -e vendors/simulated -e vendors/nvidia
	@touch $@

# Built again when a source is newer, so that nobody runs with an extension or a limiter of yesterday.
NATIVE_SOURCES := $(wildcard native/CMakeLists.txt native/*/*.cmake native/*/*.c native/*/*.h native/*/*.map native/data/* native/generated/* native/tools/*.py)
$(VENV)/.native: $(VENV)/.runtime $(NATIVE_SOURCES)
	@$(MAKE) --no-print-directory native-if-possible

$(VENV)/.test: $(VENV)/.runtime | $(VENV)/.native
	@echo "installing test tools"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet --group test --group dashboards
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "installing development tools"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet --group dev
	@touch $@

setup: $(VENV)/.native ## Make .venv with the program in it: .venv/bin/tensorfusion
	@echo "ready: $(BIN)/tensorfusion"

demo: $(VENV)/.native ## Show the product on a simulated pool, in about a minute
	@$(BIN)/tensorfusion demo $(DEMO_FLAGS)

test: $(VENV)/.test ## Run every test that needs no cluster
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not cluster and not sanitize" $(TEST_FLAGS)

test-cluster: $(VENV)/.test ## Run the store contract on a real kube-apiserver (built once from Go modules)
	@cd tests && ../$(BIN)/python -m rig.binaries
	@$(BIN)/python -m pytest -m cluster tests/contract $(TEST_FLAGS)

check: $(VENV)/.dev ## Format, lint, types, layers, C style, generated files, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/c_style.py --check
	$(MAKE) --no-print-directory generate-check
	$(MAKE) --no-print-directory docs

fix: $(VENV)/.dev ## Format and apply safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/c_style.py

generate: $(VENV)/.dev ## Write generated files: CRDs, reference pages, dashboards, rules
	$(BIN)/python tools/generate.py

.PHONY: generate-check
generate-check: $(VENV)/.dev
	$(BIN)/python tools/generate.py --check

docs: $(VENV)/.dev ## Build the documentation; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# CMake and Ninja come from PyPI where the machine has none; a C compiler and the headers of Python must be there.
.PHONY: native native-asan native-tsan native-ubsan native-if-possible wheel bench-verdict bench-laws
CMAKE_TOOLS := PATH="$(CURDIR)/$(BIN):$$PATH"
# Whatever the native part lacks here, in one line; nothing where it can be built.
LACKS = command -v $${CC:-cc} >/dev/null || echo "a C compiler, such as gcc or clang"; \
	$(BIN)/python -c 'import pathlib, sysconfig as s; pathlib.Path(s.get_path("include"), "Python.h").exists() or print("the headers of Python, such as python3-dev")'
native: $(VENV)/.uv ## Build the limiter, the simulated driver and their programs into build/native-release
	@lacks=$$({ $(LACKS); } | head -n 1); test -z "$$lacks" || { echo "the native part is not built: it needs $$lacks" >&2; exit 1; }
	@$(BIN)/python -c 'import cffi' 2>/dev/null || VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet "cffi>=2,<3"
	@for tool in cmake ninja; do $(CMAKE_TOOLS) command -v $$tool >/dev/null || VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet $$tool; done
	@$(CMAKE_TOOLS) sh -c 'cmake -S native -B $(NATIVE_BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_MAKE_PROGRAM=$$(command -v ninja) -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python >/dev/null && cmake --build $(NATIVE_BUILD) -- --quiet'
	@touch $(VENV)/.native

# Each sanitizer has a build folder of its own, build/native-NAME. Undefined behaviour is the only one under which Python
# processes can run with the limiter preloaded, so there the usual tests run.
SANITIZERS ?= asan tsan ubsan
UNDER_UBSAN := $(addprefix tests/native/test_,memory_cap shared_memory oversold checkpoint checks_entry newer_and_older_calls bypass sharing)
native-sanitize: native $(VENV)/.test ## Run programs under the address, thread and undefined-behaviour sanitizers
	@for name in $(SANITIZERS); do $(MAKE) --no-print-directory native-$$name || exit 1; done

native-asan native-tsan: native-%: native $(VENV)/.test
	@$(CMAKE_TOOLS) $(BIN)/python -m pytest -n $(WORKERS) -m sanitize tests/native/test_sanitizers.py -k $* $(TEST_FLAGS)

native-ubsan: native $(VENV)/.test
	@cd native && $(CMAKE_TOOLS) cmake --preset ubsan >/dev/null
	@TENSORFUSION_NATIVE_BUILD=$(CURDIR)/build/native-ubsan $(CMAKE_TOOLS) $(BIN)/python -m pytest -n $(WORKERS) $(addsuffix .py,$(UNDER_UBSAN)) $(TEST_FLAGS)

FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 1
fuzz: native $(VENV)/.test ## Fuzz what decodes others' bytes: FUZZ_SECONDS each, side by side
	@cd native && $(CMAKE_TOOLS) sh -c 'cmake --preset asan >/dev/null && cmake --build ../build/native-asan --target fuzz-region nullcuda -- --quiet'
	@$(BIN)/python tests/native/fuzz.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

native-if-possible: $(VENV)/.uv
	@lacks=$$({ $(LACKS); } | head -n 1); if test -z "$$lacks"; then $(MAKE) --no-print-directory native; \
	else echo "no limiter and no simulated driver: they need $$lacks; everything else works"; fi

wheel: $(VENV)/.uv ## Build the wheel of the native part into dist/, for machines without a compiler
	@$(UV) build --quiet --wheel --out-dir dist native && ls dist/tensorfusion_native-*.whl

bench-verdict: native $(VENV)/.test ## What the limiter costs per call, beside the bare call, with a verdict per check
	@$(BIN)/python tests/native/hook_cost.py $(NATIVE_BUILD)

LAW_FLAGS ?= --plot docs/explanation/control-laws.svg
bench-laws: native $(VENV)/.test ## Compare the limiter's control law with published ones on 500 random workloads (minutes)
	@$(BIN)/python tests/bench/control_law.py $(LAW_FLAGS)

bench: $(VENV)/.dev ## Run the benchmarks and print their ratios
	$(BIN)/python tests/bench/placement.py

.PHONY: support-matrix
support-matrix: native $(VENV)/.test ## Run the conformance suite on every backend and write docs/reference/support-matrix.md
	@$(BIN)/python -m tensorfusion.testing.conformance.matrix docs/reference/support-matrix.md \
	--suite nvidia "simulated driver" vendors/nvidia/tests/test_nvidia_on_simulator.py::TestNvidiaOnSimulatedDriver \
	--suite simulated "simulated driver" vendors/simulated/tests/test_simulated_driver.py::TestSimulatedDriver

clean: ## Remove the environment and build output
	rm -rf $(VENV) build dist docs/_build
