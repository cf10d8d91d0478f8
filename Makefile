# `make help` lists the targets. Every target installs what it needs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := cpu,serving,kubeflow,dev
LORA := peft accelerate hf-xet httpcore2 httpx2 huggingface-hub regex shellingham tokenizers \
	transformers truststore typer
WITHOUT_KUBEFLOW := cpu gpu lora metric-learning mlflow onnx parquet serving sweeps timm wandb
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.bench
WORKERS ?= 2

# What `make results` measures: make results SETS="emoji icons" SEEDS=0,1
SETS ?= mnist emoji icons
HEADS ?= arcface,cosface,sub_center_arcface,adaface,softmax
SEEDS ?= 0,1,2

# Rounding depends on the instruction set and on the number of threads, so the tests that compare
# floating-point numbers run again with the instructions of SSE4 and one thread, in `make check`, and
# with those of AVX2 and two threads, in `make test-numerics`. Tests with embeddings of +-1/2, whose
# products are exact, and the heads in several processes, which repeat the others, are left out.
NUMERICS := tests/evaluation/metrics tests/evaluation/test_intervals.py::test_cluster_sums_equal_copied_rows \
	tests/evaluation/test_evaluator.py::test_two_evaluations_of_a_faiss_index_are_equal \
	tests/models/heads --ignore-glob='tests/models/heads/*_processes.py' \
	--ignore=tests/models/heads/test_sharded_arcface.py tests/retrieval/test_exact_search.py \
	tests/retrieval/test_duplicates.py tests/retrieval/test_calibration.py \
	tests/retrieval/test_embed_and_index.py \
	tests/retrieval/test_shortened.py::test_stored_index_takes_full_embeddings_and_compares_shortened_ones \
	tests/runtime/test_searcher.py::test_neighbours_agree_with_a_brute_force_search
SSE4 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
	MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem FAISS_SIMD_LEVEL=NONE OMP_NUM_THREADS=1
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	OPENBLAS_CORETYPE=Haswell FAISS_SIMD_LEVEL=AVX2 OMP_NUM_THREADS=2

# The tests of a file run in one process, so each of its fixtures is made once. The folders with the
# longest files come first, so that no process waits for the other one at the end.
LONGEST := tests/acceptance tests/serving tests/training tests/pipeline tests/kfp tests/docs tests/distributed tests/cli
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Many tests start processes, and each would compile arcloop again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo serve pipeline test test-sse4 test-numerics check lint format bench bench-full bench-quick docs results constraints dist clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(MAKEFILE_LIST) | column -t -s:

install: $(INSTALLED)  ## create .venv and install arcloop in it

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# Python compiles what is imported; compiling every module takes longer than the rest.
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@# Without torchvision: it is large and must match the build of torch; otherwise Lightning cannot
	@# be imported. arcloop does not use it; see models/backbones/timm_import.py.
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --no-deps timm
	@# peft, for the tests of LoRA, in a folder of its own: torchmetrics imports transformers if it
	@# finds it, and every command would start later.
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --no-deps \
		--target $(VENV)/lora $(LORA)
	@touch $@

demo: $(INSTALLED)  ## run all steps on MNIST and write a report page
	$(BIN)/arcloop run experiment=mnist

serve: $(INSTALLED)  ## serve the run of the demo on this machine
	$(BIN)/arcloop serve run_dir=runs/mnist

pipeline: $(INSTALLED)  ## run the same steps as a Kubeflow pipeline on this machine
	$(BIN)/arcloop pipeline experiment=mnist

test: $(INSTALLED)  ## all tests
	$(PYTEST) $(LONGEST) tests src

test-sse4: $(INSTALLED)  ## the tests that compare numbers, with SSE4
	$(SSE4) $(PYTEST) $(NUMERICS)

test-numerics: test-sse4  ## the tests that compare numbers, with SSE4 and with AVX2
	$(AVX2) $(PYTEST) $(NUMERICS)

check: $(INSTALLED)  ## lint, then tests, doctests and the code in the docs
	$(MAKE) --jobs 2 lint test-sse4
	$(MAKE) test

lint: $(INSTALLED)  ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH_INSTALLED)  ## run the benchmarks and write docs/performance.md; a quarter of an hour
	$(BIN)/python -m benchmarks

bench-full: $(BENCH_INSTALLED)  ## the same including the largest sizes; about an hour
	$(BIN)/python -m benchmarks --full

bench-quick: $(BENCH_INSTALLED)  ## comparisons on small sizes, printed only; two minutes
	$(BIN)/python -m benchmarks --quick

$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS),bench]'
	$(BIN)/python -m pip install --quiet --no-deps open-metric-learning==4.0.0
	@touch $@

results: $(INSTALLED)  ## compare heads over seeds on real sets and write docs/results/
	$(BIN)/python -m benchmarks.results $(SETS) --heads $(HEADS) --seeds $(SEEDS)

docs: $(INSTALLED)  ## the documentation site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The versions of constraints.txt, without the packages that kfp holds back.
constraints: $(INSTALLED)  ## resolve constraints/without-kubeflow.txt, which is constraints.txt without kfp
	$(BIN)/python -m pip install --quiet uv
	grep -v -E '^(kubernetes|protobuf|requests|urllib3)==' constraints.txt | $(BIN)/uv pip compile --quiet \
		--universal --python-version 3.11 --no-annotate --no-header --constraint - $(WITHOUT_KUBEFLOW:%=--extra %) \
		pyproject.toml --output-file constraints/without-kubeflow.txt

dist: $(INSTALLED)  ## build sdist and wheel in dist/, and check them
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

clean:  ## remove .venv and caches, but not runs and stores
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
