PYTHON ?= python3
VENV_PYTHON := .venv/bin/python

# The second Blender of `make test`, beside the one in .venv.
OTHER_BLENDER ?= 4.2.23
# Test files that run at the same time.
WORKERS ?= 2
# Options of the window test.
WINDOW ?=

.PHONY: setup demo test test-matrix test-gui test-gui-install bench extension clean

setup:
	@$(PYTHON) tools/setup.py

demo: setup
	@$(VENV_PYTHON) tools/demo.py --out out/demo

test: setup
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m pytest -n $(WORKERS) --dist loadfile
	@$(VENV_PYTHON) tools/matrix.py $(OTHER_BLENDER) --short

test-matrix: setup
	@$(VENV_PYTHON) tools/matrix.py

test-gui: extension
	@$(VENV_PYTHON) tests/window/run.py $(WINDOW)

# Also downloads PyTorch, by the button in Blender's preferences: up to 3 GB.
test-gui-install: extension
	@$(VENV_PYTHON) tests/window/run.py --as-new --minutes 30 --out out/window_install

bench: setup
	@mkdir -p out/bench
	@$(VENV_PYTHON) benchmarks/rasterizer.py --report out/bench/rasterizer.json
	@$(VENV_PYTHON) benchmarks/bake.py --report out/bench/bake.json

extension: setup
	@$(VENV_PYTHON) tools/build_extension.py --out dist

clean:
	rm -rf out dist .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
