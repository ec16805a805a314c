PYTHON ?= python3
VENV_PYTHON := .venv/bin/python

WINDOW_BLENDER ?= blender

.PHONY: setup demo test test-gui bench extension clean

setup:
	@$(PYTHON) tools/setup.py

demo: setup
	@$(VENV_PYTHON) tools/demo.py --out out/demo

test: setup
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m pytest

test-gui: extension
	@$(VENV_PYTHON) tests/window/run.py --blender $(WINDOW_BLENDER) --zip dist/animate3d-0.1.0.zip \
		--python $(VENV_PYTHON) --out out/window

bench: setup
	@mkdir -p out/bench
	@$(VENV_PYTHON) benchmarks/rasterizer.py --report out/bench/rasterizer.json
	@$(VENV_PYTHON) benchmarks/bake.py --report out/bench/bake.json

extension: setup
	@$(VENV_PYTHON) tools/build_extension.py --out dist

clean:
	rm -rf out dist .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
