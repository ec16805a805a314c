"""The backend's Python, where the tests' own has no torch: so it is with users, whose Blender never has it.

ANIMATE3D_PYTHON names it then (`tools/matrix.py` runs the tests like that, once for each Blender).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from backend.protocol import Motion, Rig, Subject

ROOT = Path(__file__).resolve().parent.parent
PYTHON = os.environ.get("ANIMATE3D_PYTHON") or sys.executable
HAS_TORCH = importlib.util.find_spec("torch") is not None
SKELETONS = """
import sys
from pathlib import Path
from backend.motion.skeleton import make_rig
from backend.protocol import Motion, Subject
for line in sys.stdin:
    job = Path(line.rstrip("\\n"))
    make_rig(Subject.load(job), Motion.load(job)).save(job)
    print(flush=True)
"""
_maker: subprocess.Popen | None = None


def run(*arguments: str) -> None:
    """Runs the backend's Python in the repository's folder, and waits for it."""
    subprocess.run([PYTHON, *arguments], cwd=ROOT, check=True, timeout=300)


def make_rig(subject: Subject, motion: Motion) -> Rig:
    """`backend.motion.skeleton.make_rig`, here or in the backend's Python; that one ends with this process."""
    if HAS_TORCH:
        from backend.motion.skeleton import make_rig as make

        return make(subject, motion)
    global _maker
    if _maker is None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        _maker = subprocess.Popen([PYTHON, "-c", SKELETONS], cwd=ROOT, **pipes)
    with tempfile.TemporaryDirectory() as job:
        subject.save(Path(job))
        motion.save(Path(job))
        print(job, file=_maker.stdin, flush=True)
        assert _maker.stdout.readline(), "the backend's Python makes no skeleton"
        return Rig.load(Path(job))
