PYTHON ?= python3
VENV_PYTHON := .venv/bin/python

.PHONY: setup demo test bench extension clean

setup:
	@$(PYTHON) tools/setup.py

demo: setup
	@$(VENV_PYTHON) tools/demo.py --out out/demo

test: setup
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m pytest

bench: setup
	@mkdir -p out/bench
	@$(VENV_PYTHON) benchmarks/rasterizer.py --report out/bench/rasterizer.json

extension: setup
	@$(VENV_PYTHON) tools/build_extension.py --out dist

clean:
	rm -rf out dist .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
