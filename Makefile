# `make demo` shows the project at work on a bare machine; `make test` checks all of it.

PYTHON    ?= python3
MAMBA_SSM ?= 2.3.2.post1
# Any requirement that pip understands, such as the file of a wheel.
TORCH     ?= torch==2.13.0
# Empty: without one, also where torch brings it.
TRITON    ?= triton==3.6.0
TEXT      ?=

# What mamba-ssm imports; without --no-deps it would bring a compiler of kernels as well.
LIGHT_DEPENDENCIES = einops transformers
BUILD_REQUIREMENTS = setuptools wheel packaging ninja

PIP = bin/python -m pip install --quiet --disable-pip-version-check

# A stamp says what is installed; its name changes with what is asked for.
DEMO_BASE  = .demo/base-$(shell echo '$(TORCH) $(TRITON)' | cksum | cut -d ' ' -f 1)
DEMO_MAMBA = .demo/mamba-ssm-$(MAMBA_SSM)

.DEFAULT_GOAL = help
.PHONY: help demo test hook lint bytecode kernels matrix tritons mutants mutate joints exports boards peers copies release docs docs-check sanitize clean

help:
	@echo 'make demo [MAMBA_SSM=2.2.4] [TEXT=file]   train two small models here, nothing compiled'
	@echo 'make test                                 lint, types and the test suite'
	@echo 'make hook [HOOK_PYTHON=3.8]               the tests of the hook, by a Python without torch'
	@echo 'make lint                                 lint and types only'
	@echo 'make kernels                              every kernel of the convolution for every architecture'
	@echo 'make matrix                               every release with every release (half an hour)'
	@echo 'make tritons                              the latest mamba-ssm beside released Tritons, on a CPU'
	@echo 'make mutants [COUNT=1200] [SEED=0]        variants of every text, each held to what it means'
	@echo 'make mutate [PART=hook|rewrite|ops|report] [COUNT=20] [SEED=0]'
	@echo '                                          changes of this code, each of which a test is to notice'
	@echo 'make joints                               what users of torch and transformers do (an hour or more)'
	@echo 'make exports                              every kind of model to ONNX, by every way'
	@echo 'make boards [BOARDS=jetpack-7 [FROM=verify]]'
	@echo '                                          the first steps on imitated boards (16 minutes each)'
	@echo 'make peers [MAMBA=checkout] [CAUSAL_CONV1D=checkout] [PYTEST=options]'
	@echo '                                          the tests of these projects themselves'
	@echo 'make copies                               the copies that a released wheel carries'
	@echo 'make release                              wheel and sdist, in dist, tried as published'
	@echo 'make sanitize                             the CUDA kernels under compute-sanitizer, on a GPU'
	@echo 'make docs                                 the documentation, in build/site'
	@echo 'make docs-check                           its pages in a browser, and the commands that install'
	@echo 'make clean                                remove what these made'

demo: $(DEMO_MAMBA)
	.demo/bin/jetson-mamba demo $(if $(TEXT),--text '$(TEXT)')

$(DEMO_BASE):
	$(PYTHON) -m venv --clear .demo
	@echo 'Installing $(TORCH), which takes a while'
	.demo/$(PIP) '$(TORCH)' $(if $(TRITON),'$(TRITON)') $(LIGHT_DEPENDENCIES) $(BUILD_REQUIREMENTS)
	$(if $(TRITON),,.demo/bin/python -m pip uninstall -qq --yes triton)
	touch $@

$(DEMO_MAMBA): $(DEMO_BASE) pyproject.toml
	rm -f .demo/mamba-ssm-*
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE \
	    .demo/$(PIP) --no-build-isolation --no-deps 'mamba-ssm==$(MAMBA_SSM)'
	.demo/$(PIP) --editable '.[demo]'
	touch $@

# An environment that forbids bytecode would have every process of the tests compile all it imports.
unexport PYTHONDONTWRITEBYTECODE

# The releases are fetched beside what is installed, and bytecode is made beside the lint. Then two
# tests at a time, each on one thread: more of either only makes them wait for each other. A file's
# tests share a process, so that what they begin with is begun once; tests/conftest.py has the order.
test:
	$(MAKE) --no-print-directory --jobs 2 lint bytecode
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile \
	    --no-loadscope-reorder

# The hook alone, by a Python that has no torch; uv brings one that is not here.
HOOK_PYTHON ?= 3.8

hook: .venv/ready .releases/ready
	.venv/bin/uv venv --quiet --clear --seed build/hook \
	    --python "$$(.venv/bin/python -m tests.hook.pythons $(HOOK_PYTHON))"
	build/hook/$(PIP) pytest hypothesis packaging importlib-resources
	build/hook/bin/python -m pytest -p no:cacheprovider tests/hook

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy .

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Bytecode of all that is installed would take as long as to unpack it.
.venv/ready: requirements-dev.txt pyproject.toml | .venv/bin/python
	.venv/bin/python -m tools.install --requirement requirements-dev.txt --editable .
	touch $@

# That of what the tests import first, and of the tests; what is wrong with these, they tell.
bytecode: .venv/ready .releases/ready
	.venv/bin/python -W ignore -c 'import torch._inductor.compile_fx, torch.export, onnxscript, \
	    transformers.generation.utils, matplotlib.pyplot, onnxruntime, jsonschema'
	.venv/bin/python -m pytest --collect-only -qq > /dev/null 2>&1 || true

# The published source distributions that tests run against.
.releases/ready: tools/releases.py | .venv/bin/python
	.venv/bin/python -m tools.releases
	touch $@

# In `make test`, any two of what a kernel is specialised by.
kernels: .venv/ready
	EVERY_KERNEL=1 .venv/bin/python -m pytest --numprocesses 2 tests/kernels

# Wheels of Triton with which the latest mamba-ssm works in part, not at all, and whole.
TRITONS = 3.0.0 3.2.0 3.6.0

.releases/triton-%: .venv/ready
	.venv/bin/python -m pip install --quiet --no-deps --upgrade --target $@ triton==$*
	touch $@

tritons: .releases/ready $(TRITONS:%=.releases/triton-%)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/without_triton/test_released.py

matrix: .venv/ready .releases/ready
	.venv/bin/python -m tests.matrix docs

# As many mutants as half an hour is enough for; COUNT=0 for every one that there is.
COUNT ?= 1200
SEED  ?= 0

mutants: .venv/ready .releases/ready
	.venv/bin/python -m tests.mutants --count $(COUNT) --seed $(SEED)

# COUNT changes of each part; a copy of the tree is changed, never this one.
PART ?= all

mutate: COUNT = 20
mutate: .venv/ready .releases/ready
	.venv/bin/python -m tests.noticed --part $(PART) --count $(COUNT) --seed $(SEED)

joints: .venv/ready .releases/ready
	.venv/bin/python -m tests.joints --resume build/joints.jsonl

exports: .venv/ready .releases/ready
	PYTHONPATH=.releases/mamba-ssm-2.3.2.post1 .venv/bin/python -W ignore -m tests.export.models

# Needs root, debootstrap and qemu-user-static, on anything but aarch64. With FROM one that was built
# goes on, as the project is now, at the first step with that text in it.
BOARDS ?=
FROM   ?=

boards: .venv/ready
	.venv/bin/python -m tests.boards $(if $(FROM),--from '$(FROM)') $(BOARDS)

# A release of mamba-ssm is run in place of the checkout's own with PEER_RELEASE=2.3.2.post1.
peers: .venv/ready .releases/ready
	.venv/bin/python -m tests.peers $(if $(MAMBA),--mamba '$(MAMBA)') \
	    $(if $(CAUSAL_CONV1D),--causal-conv1d '$(CAUSAL_CONV1D)') \
	    $(if $(PEER_RELEASE),--release '$(PEER_RELEASE)') -- $(PYTEST)

copies: .venv/ready .releases/ready
	.venv/bin/python -m tools.bundle
	.venv/bin/python -m tools.bundle --check

release: .venv/ready .releases/ready
	.venv/bin/python -m tools.release

docs: .venv/docs-ready
	.venv/bin/python -m tests.faults
	.venv/bin/mkdocs build --strict

# Needs Chromium, and a network for pip.
docs-check: docs .releases/ready
	.venv/bin/python -m tools.docs_check
	.venv/bin/python -m tests.docs

.venv/docs-ready: requirements-docs.txt .venv/ready
	.venv/$(PIP) --requirement requirements-docs.txt
	touch $@

# On a GPU, with compute-sanitizer. Only the project's own kernels are looked into; the API errors
# left out are cuda-bindings asking for functions that the driver does not have.
SANITIZER = compute-sanitizer --error-exitcode 1 --report-api-errors no \
    --kernel-name kns=selective_scan --kernel-name kns=causal_conv1d \
    --kernel-name kns=norm_ --kernel-name kns=state_update --kernel-name kns=ssd_
SANITIZED = $(PYTHON) -m pytest --quiet -p no:cacheprovider tests/gpu/test_kernels_causal_conv1d.py \
    tests/gpu/test_kernels_selective_scan.py tests/gpu/test_kernels_norms.py \
    tests/gpu/test_kernels_decoding.py tests/gpu/test_kernels_ssd.py

sanitize:
	$(SANITIZER) --tool memcheck $(SANITIZED)
	$(SANITIZER) --tool racecheck $(SANITIZED)

clean:
	rm -rf .demo .boards .venv .releases build dist demo-output
	find . -name __pycache__ -prune -exec rm -rf {} +
