"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Several pytest processes (`-n`, as in the Makefile) share the cores; numpy, torch and numba would take them all.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, os.cpu_count() // workers)))

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A model folder of the real classes at the smallest size, with random weights; see `tiny_weights.build`."""
    from backend_python import HAS_TORCH, run

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    if HAS_TORCH:
        from tiny_weights import build

        build(folder)
    else:
        run("tests/tiny_weights.py", str(folder))
    return folder
