# make demo   build the MobileNetV2 example for this machine, verify it, compare it with float
# make test   the test suite (without the slow tests; .ci/run runs everything)
PYTHON ?= python3
# On Linux, PyPI's PyTorch is the CUDA build, which is large. TORCH_INDEX=URL takes PyTorch from an
# index of CPU builds instead; pytorch.org, "Get Started", names PyTorch's own.
TORCH_INDEX ?=
PYTEST_ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
DEMO := build/demo/mobilenet_v2.qc

.PHONY: demo test lint types contracts install clean

demo: $(INSTALLED)
	$(BIN)/qcompile examples/mobilenet_v2.py --target host --output $(DEMO) --force
	$(BIN)/qcompile verify $(DEMO) --against examples/mobilenet_v2.py
	$(BIN)/python examples/demo.py examples/mobilenet_v2.py $(DEMO)

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy -p qcompile

contracts: $(INSTALLED)
	$(BIN)/lint-imports

install: $(INSTALLED)

# PyTorch first, so that nothing else decides which build of it is taken. Without build isolation
# the build backend is the pinned one too.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qcompile needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation --editable '.[onnx,coreml,tvm,dev]'
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
