PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNELS := quant/cpu_kernels.cpp quant/cpu_kernels_avx2.h quant/cpu_float_kernels.cpp quant/cpu_float_block.h quant/cpu_packing.cpp

.PHONY: serve test check format coverage lint-page bench gpu image clean

serve: $(VENV)/.installed
	$(BIN)/glm-infill serve --quant int8

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(KERNELS)

# What the tests' own process runs: lines that only a rank's process or a command's process runs do not count.
coverage: $(VENV)/.installed-dev
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

# The page's scripts. Needs Node.js, which nothing else does.
lint-page:
	npx --yes oxlint@1.94.0 --deny-warnings server/static

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.shared_context

gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

# TORCH=cuda for cards. With IMAGE_ENGINE=podman or buildah, BUILDAH_FORMAT=docker keeps the health check.
IMAGE_ENGINE ?= docker
TORCH ?= cpu
image:
	$(IMAGE_ENGINE) build --build-arg TORCH=$(TORCH) --build-arg REVISION=$$(git rev-parse HEAD) \
		--tag glm-infill:$(if $(filter cpu,$(TORCH)),latest,$(TORCH)) .

clean:
	rm -rf $(VENV) build *.egg-info quant/*.so

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml $(KERNELS)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml $(KERNELS)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed
