# make demo   install into .venv, compile the shipped model for this machine, let it speak, measure it
# make test   the same with the test dependencies, then the tests
# make test-devices   the tests of what other devices run, on emulators
# make test-all       both, and every reader of files tried with many more that are damaged or hostile
# make test-gpu       the tests that only a GPU can run; PREPARED=FOLDER has what was compiled elsewhere
# make test-mlc-llm   the tests of mlc_llm's adapter that need it installed
# make lint, make types, make wheel: what .ci/run does besides

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# What is of a GPU, but runs on the CPU.
EMULATED := tests/tir_kernels/cuda tests/support tests/model/test_cuda.py tests/compile/test_cuda.py tests/benchmarks/test_gpu.py
# A linker is needed to compile; Zig's stands in where there is no C compiler.
LINKER := $(shell command -v cc >/dev/null 2>&1 || echo "[cross]")

.PHONY: demo test lint types wheel test-devices test-all test-gpu test-mlc-llm clean

$(VENV)/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable ".$(LINKER)"
	touch $@

$(VENV)/test: $(VENV)/demo
	$(PIP_INSTALL) --editable ".[test,all]"
	touch $@

demo: $(VENV)/demo
	$(BIN)/gecko-mlc generate gecko-demo --prompt "It was a bright morning, and the king" --max-tokens 120 --seed 0
	$(BIN)/gecko-mlc bench gecko-demo --prompt-tokens 512 --decode-tokens 128 --repetitions 3

test: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(EMULATED:%=--ignore=%)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Against the installed wheel, where the four folders have their import names.
types: $(VENV)/test wheel
	test -x build/types/bin/python || $(PYTHON) -m venv build/types
	build/types/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt mypy dist/*.whl
	build/types/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps dist/*.whl
	cd build/types && bin/mypy --config-file ../../pyproject.toml -p gecko_mlc

wheel: $(VENV)/test
	rm -rf dist build/lib
	$(BIN)/python -m build --wheel --outdir dist . >/dev/null

# The CUDA kernels and functions, their generated source run on the CPU, and the GPU's benchmark. Browsers come with
# their targets.
test-devices: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(EMULATED)

test-all: test test-devices
	$(BIN)/python -m pytest tests/hostile/test_parsers.py --hypothesis-profile=long

test-gpu: $(VENV)/test
	$(BIN)/python -m pytest tests/gpu $(PREPARED:%=--prepared=%)

# mlc_llm comes from https://llm.mlc.ai/docs/install/mlc_llm.html.
test-mlc-llm: $(VENV)/test
	$(BIN)/python -m pytest tests/with_mlc_llm

clean:
	rm -rf $(VENV) build dist *.egg-info
