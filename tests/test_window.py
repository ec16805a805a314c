"""The built extension in a Blender with a window, where there is one: set ANIMATE3D_WINDOW_BLENDER to its path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLENDER = os.environ.get("ANIMATE3D_WINDOW_BLENDER", "")


@pytest.mark.skipif(not shutil.which(BLENDER or "no Blender"), reason="ANIMATE3D_WINDOW_BLENDER names no Blender")
def test_install_animate_undo_cancel_check(tmp_path):
    subprocess.run([sys.executable, str(ROOT / "tools" / "build_extension.py"), "--out", str(tmp_path)], check=True)
    (built,) = tmp_path.glob("*.zip")
    command = [sys.executable, str(ROOT / "tests" / "window" / "run.py"), "--blender", BLENDER, "--zip", str(built)]
    run = subprocess.run([*command, "--python", sys.executable, "--out", str(tmp_path / "out")], check=False)
    assert run.returncode == 0
