# make help lists the targets. Needed beforehand: Python 3.10 or later, make, gcc, git.

PYTHON     ?= python3
GPU_PYTHON ?= $(PYTHON)
RESULTS    ?= benchmarks/results
RUN        ?=
PYTEST     ?=
TORCH      ?=
BASE       ?= main
ALL        ?=
SAMPLE     ?= 0
SEED       ?= 0
ZOO_WORKERS ?= $(shell nproc)

UV_VERSION := 0.13.9
PIP        := .venv/bin/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-torch check typing docs package package-bare changelog gpu-test gpu2-test bench operators attacks triton mutants zoo gpu-zoo evidence lock clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo      train a small network on handwritten digits, deploy it, compare the answers'
	@echo 'make test      every test that needs no GPU          (more flags: PYTEST="-x -k artifact")'
	@echo 'make test-fast those of them that neither export, train, build nor start a process: under a minute'
	@echo 'make test-torch TORCH=2.11.0  the tests of capture and export with another torch, in an environment of its own'
	@echo 'make check     ruff, pyright (strict), import rules'
	@echo 'make docs      the documentation as HTML in build/docs, strictly'
	@echo 'make package   wheel and sdist in dist/, installed in an environment of their own and tried there'
	@echo 'make package-bare  the same without dependencies, so without torch  (PYTHON=python3.13 for another Python)'
	@echo 'make changelog a section of CHANGELOG.md from changelog.d/, whose fragments it removes'
	@echo 'make typing    mypy (strict) on a project of a user'
	@echo 'make gpu-test  the tests that need a GPU; figures go to $$RESULTS/gpu-tests.json'
	@echo 'make gpu2-test the tests that need two GPUs; figures go to $$RESULTS/gpu2-tests.json'
	@echo 'make bench     time calls beside TensorRT, PyTorch and others, and stress them; figures go to $$RESULTS'
	@echo 'make attacks   attack artifacts, the engine cache and scratch folders at random, without a GPU'
	@echo 'make triton    serve exported models by the real Triton server, without a GPU'
	@echo 'make mutants   put small faults into the lines that differ from BASE=$(BASE), and run the tests that reach them  (FILES=..., or ALL=1 SAMPLE=300)'
	@echo 'make zoo       send many well-known models through export, ONNX Runtime and the builder, without a GPU'
	@echo 'make gpu-zoo   deploy them on a GPU; it needs timm, torchvision and transformers'
	@echo 'make evidence  list which figures no longer speak for the tree  (RUN="call_overhead stress" measures these anew)'
	@echo 'make lock      pin what the dev, quantize and demo extras need anew in requirements/'
	@echo 'make clean     remove everything that make made'
	@echo
	@echo 'PYTHON=$(PYTHON) makes .venv; GPU_PYTHON=$(GPU_PYTHON) runs what needs a GPU, without .venv; RESULTS=$(RESULTS)'

.venv/stamp: requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "torch2engine needs Python 3.10 or later, this is " + sys.version.split()[0])'
	@echo '· installing requirements/dev.lock into .venv (a few minutes the first time)'
	@$(PYTHON) -m venv .venv
	@$(PIP) install -qq -r requirements/dev.lock
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

# What a user needs, and no developer's tool. Where .venv is there already, the demo takes that.
build/demo-venv/stamp: requirements/demo.txt
	@echo '· installing requirements/demo.txt into build/demo-venv (without a GPU, the CPU wheels of PyTorch are smaller:'
	@echo '  make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu)'
	@$(PYTHON) -m venv --clear build/demo-venv
	@build/demo-venv/bin/python -m pip --disable-pip-version-check install -r requirements/demo.txt
	@touch $@

DEMO_VENV := $(if $(wildcard .venv/stamp),.venv,build/demo-venv)

demo: $(if $(filter build/%,$(DEMO_VENV)),$(DEMO_VENV)/stamp)
	@PYTHONPATH=. $(DEMO_VENV)/bin/python examples/quickstart.py

# A thread for each process: two processes' pools spin in one another's way, which takes a tenth longer. Compiled files
# are kept, whatever the shell says: a hundred processes import the package, and each compiles it for half a second.
TEST_ENV := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

# A worker begins with one half of the files, in their order, and takes over a part of another's rest when it is done.
test: .venv/stamp
	@$(TEST_ENV) .venv/bin/python -m pytest -m "not gpu" -n auto --maxprocesses 4 --dist worksteal $(PYTEST)

# For the inner loop.
test-fast: .venv/stamp
	@$(TEST_ENV) .venv/bin/python -m pytest -m "not gpu and not slow" -n auto --maxprocesses 4 --dist worksteal $(PYTEST)

# Where the export must work with another torch: a GPU machine has the one that it has.
test-torch:
	@test -n '$(TORCH)' || { echo 'name a version: make test-torch TORCH=2.11.0'; exit 1; }
	@$(MAKE) --no-print-directory .venv-torch-$(TORCH)/stamp
	@$(TEST_ENV) .venv-torch-$(TORCH)/bin/python -m pytest -m "not gpu" -n auto --maxprocesses 4 --dist worksteal \
		tests/capture tests/exporter tests/deploy_steps/public_functions/test_export.py $(PYTEST)

.venv-torch-%/stamp: .venv/stamp tests/support/other_torch.py
	@echo '· installing torch $* into $(@D), with the other packages of .venv'
	@.venv/bin/python -m tests.support.other_torch $* $(@D)
	@touch $@

check: .venv/stamp
	@echo '· ruff check'
	@.venv/bin/ruff check --quiet
	@echo '· ruff format'
	@.venv/bin/ruff format --check || { echo 'run: .venv/bin/ruff format'; exit 1; }
	@echo '· pyright'
	@.venv/bin/pyright
	@echo '· import rules'
	@.venv/bin/lint-imports --no-cache --no-logo

# As a user's editor and mypy see the package; `make check` runs pyright on the same project.
build/typing-venv/stamp: requirements/typing.txt
	@$(PYTHON) -m venv --clear build/typing-venv
	@build/typing-venv/bin/python -m pip --disable-pip-version-check install -qq -r requirements/typing.txt
	@touch $@

typing: .venv/stamp build/typing-venv/stamp
	@build/typing-venv/bin/mypy --config-file tests/project/typing_sample/mypy.ini --python-executable .venv/bin/python \
		--cache-dir build/mypy-cache tests/project/typing_sample

# An environment of its own, which also finds what .venv has: the pages of the API import the package.
build/docs-venv/stamp: requirements/docs.txt .venv/stamp
	@echo '· installing requirements/docs.txt into build/docs-venv'
	@$(PYTHON) -m venv --clear build/docs-venv
	@build/docs-venv/bin/python -m pip --disable-pip-version-check install -qq -r requirements/docs.txt
	@.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$(build/docs-venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth
	@touch $@

docs: build/docs-venv/stamp
	@PYTHONPATH=. build/docs-venv/bin/towncrier build --draft --version 'Next release' --date unreleased \
		> build/next-release.md 2> /dev/null
	@PYTHONPATH=. build/docs-venv/bin/python -m sphinx -q -W --keep-going -b html docs build/docs
	@PYTHONPATH=. build/docs-venv/bin/python -m tests.support.html_links build/docs
	@echo '· build/docs/index.html'

# The sdist, and the wheel that is built from it. Each is tried alone first, where the doctor must work; then the wheel
# with its dependencies. The smoke tests run isolated: they can import no file of the checkout.
build/package-venv/stamp: requirements/package.txt
	@$(PYTHON) -m venv --clear build/package-venv
	@build/package-venv/bin/python -m pip --disable-pip-version-check install -qq -r requirements/package.txt
	@touch $@

package-bare: build/package-venv/stamp
	@rm -rf dist build/lib build/bdist.* build/bare-venv
	@build/package-venv/bin/python -m build --outdir dist . > build/package.log 2>&1 || { cat build/package.log; exit 1; }
	@ls dist/*
	@$(PYTHON) -m venv build/bare-venv
	@for file in dist/*; do \
		echo "· installing $$file alone into build/bare-venv"; \
		build/bare-venv/bin/python -m pip --disable-pip-version-check install -qq --no-deps --force-reinstall "$$file" || exit 1; \
		build/bare-venv/bin/python -I tests/support/bare_smoke.py || exit 1; \
	done

package: package-bare
	@rm -rf build/installed-venv
	@$(PYTHON) -m venv build/installed-venv
	@echo '· installing the wheel into build/installed-venv, with its dependencies'
	@build/installed-venv/bin/python -m pip --disable-pip-version-check install -qq --constraint requirements/demo.txt \
		"$$(ls $(CURDIR)/dist/*.whl)[cli]"
	@build/installed-venv/bin/python -I tests/support/installed_smoke.py

# The version is that of torch2engine/core/version.py.
changelog: build/docs-venv/stamp
	@PYTHONPATH=. build/docs-venv/bin/towncrier build --yes

gpu-test:
	@mkdir -p $(RESULTS)
	@$(GPU_PYTHON) -m pytest -q tests/gpu --evidence=$(RESULTS)/gpu-tests.json $(PYTEST)

gpu2-test:
	@mkdir -p $(RESULTS)
	@$(GPU_PYTHON) -m pytest -q tests/gpu2 --evidence=$(RESULTS)/gpu2-tests.json $(PYTEST)

# Each in its own process, so that none inherits another's memory, threads or compiled code.
bench:
	@mkdir -p $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.call_overhead --out $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.models --out $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.deploy --out $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.stress --out $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.precision --out $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.refit --out $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.processor --out $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.throughput --out $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.trust --out $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.fallback --out $(RESULTS)
	@$(GPU_PYTHON) -m benchmarks.compile_backend --out $(RESULTS)

# Needs no GPU.
operators: .venv/stamp
	@mkdir -p $(RESULTS)
	@.venv/bin/python -m benchmarks.operators --out $(RESULTS)

# Need no GPU.
attacks: .venv/stamp
	@mkdir -p $(RESULTS)
	@.venv/bin/python -m benchmarks.attacks --out $(RESULTS)

# Without their dependencies, which .venv has.
build/triton-venv/stamp: requirements/triton.txt .venv/stamp
	@echo '· installing requirements/triton.txt into build/triton-venv'
	@$(PYTHON) -m venv --clear build/triton-venv
	@.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$(build/triton-venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth
	@build/triton-venv/bin/python -m pip --disable-pip-version-check install -qq --no-deps -r requirements/triton.txt
	@touch $@

triton: build/triton-venv/stamp
	@build/triton-venv/bin/python -m benchmarks.triton_server --out $(RESULTS)

mutants: .venv/stamp
	@mkdir -p $(RESULTS)
	@.venv/bin/python -m benchmarks.mutants --base $(BASE) $(if $(ALL),--all) $(if $(FILES),--files $(FILES)) --sample $(SAMPLE) --seed $(SEED) --out $(RESULTS)

# timm, torchvision: without their dependencies, which .venv has.
build/zoo/stamp: requirements/zoo.txt .venv/stamp
	@$(PYTHON) -m venv build/zoo
	@.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $@.pth
	@mv $@.pth $$(build/zoo/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth
	@build/zoo/bin/python -m pip --disable-pip-version-check install -qq --no-deps -r requirements/zoo.txt
	@touch $@

zoo: build/zoo/stamp
	@build/zoo/bin/python -m benchmarks.zoo_sweep --backend cpu --workers $(ZOO_WORKERS) --out $(RESULTS)

gpu-zoo:
	@$(GPU_PYTHON) -m benchmarks.zoo_sweep --backend gpu --workers $(ZOO_WORKERS) --out $(RESULTS)

# Exit status 1 of the list is a finding, not a failure of make.
evidence:
	@$(GPU_PYTHON) -m benchmarks.staleness $(RUN) --out $(RESULTS) || test $$? -eq 1

lock: build/uv/bin/uv
	@echo '· resolving pyproject.toml'
	@build/uv/bin/uv pip compile --quiet --no-header --no-annotate --universal --python-version 3.10 \
		--extra dev --extra quantize pyproject.toml --output-file requirements/dev.lock $(LOCK)
	@build/uv/bin/uv pip compile --quiet --no-header --no-annotate --universal --python-version 3.10 \
		--extra demo pyproject.toml --constraint requirements/dev.lock --output-file requirements/demo.txt
	@sed -E -i -e '/^(nvidia-|cuda-|triton==)/{/^nvidia-(modelopt|ml-py)==/!d}' \
		-e "s/ (;|and) platform_machine == 'x86_64' and sys_platform == 'linux'$$//" \
		requirements/dev.lock requirements/demo.txt
	@sed -i -e '1i # What `make demo` runs with, the dependencies and the demo extra, pinned as in dev.lock. Made by `make lock`.' \
		-e "1i # torch's CUDA wheels are left out: torch pins them itself, and its CPU builds need none." requirements/demo.txt
	@sed -i -e '1i # What the dev and quantize extras need, pinned, for x86-64 Linux and Python 3.10 or later. Made by `make lock`.' \
		-e "1i # torch's CUDA wheels are left out: torch pins them itself, and its CPU builds need none." requirements/dev.lock

build/uv/bin/uv:
	@$(PYTHON) -m venv build/uv
	@build/uv/bin/python -m pip --disable-pip-version-check install -qq uv==$(UV_VERSION)

clean:
	@rm -rf .venv .venv-torch-* build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
