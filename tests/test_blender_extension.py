"""The built zip, installed as users install it: what it holds, where it writes, and what an update leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("bpy")

from backend_python import PYTHON

ROOT = Path(__file__).resolve().parent.parent
# Blender ends without a word of it where a script fails: the last line says how it went.
INSTALLED = """
import importlib, json, os, shutil, sys
from pathlib import Path
import bpy

archive, weights = sys.argv[1:]
def install():
    bpy.ops.extensions.package_install_files(
        filepath=archive, repo="user_default", enable_on_install=True, overwrite=True
    )
install()
places = importlib.import_module("bl_ext.user_default.animate3d.animate3d_addon.places")
folder = Path(places.__file__).parent.parent
def files():
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}
before = files()
shutil.copytree(weights, places.weights() / "animate3d")
install()
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.preferences.addon_enable(module="bl_ext.user_default.animate3d")
bpy.ops.mesh.primitive_cube_add()
bpy.ops.animate3d.animate(prompt="a cube sways", weights="animate3d", frames=4)
found = {
    "folder": str(folder),
    "places": [str(place) for place in (places.home(), places.weights(), places.environment())],
    "new": sorted(files() - before),
    "caches": [str(path) for path in (folder / "backend").rglob("__pycache__")],
    "keys": len(bpy.context.object.data.shape_keys.key_blocks),
    "left": sorted(path.name for path in places.home().iterdir()),
}
print("\\n" + json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, str(ROOT / "tools" / "build_extension.py"), "--out", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (built,) = folder.glob("*.zip")
    return built


def test_the_zip_holds_what_runs_and_nothing_else(archive):
    names = zipfile.ZipFile(archive).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {"__init__.py", "blender_manifest.toml", "animate3d_addon", "backend", "weights", "LICENSE"} <= tops
    assert {"requirements.lock", "requirements-torch.lock", "requirements-cuda.lock"} <= tops
    assert not tops & {"tests", "benchmarks", "tools", "docs", "runs", "out", "dist", ".venv", ".git"}
    assert not [name for name in names if name.endswith((".pyc", ".part"))]
    assert (archive.parent / "index.json").is_file()  # of a repository that anybody may host


def test_what_is_fetched_outlives_an_update(archive, tmp_path, tiny_weights):
    """A model in the user's folder is found by the panel and by the backend after a new version was installed."""
    script = tmp_path / "script.py"
    script.write_text(INSTALLED)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANIMATE3D_")}
    environment |= {"BLENDER_USER_RESOURCES": str(tmp_path / "user"), "ANIMATE3D_PYTHON": PYTHON}
    run = subprocess.run(
        [sys.executable, str(script), str(archive), str(tiny_weights)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    found = json.loads(run.stdout.strip().splitlines()[-1])
    assert found["keys"] == 4
    assert all(Path(found["folder"]) not in Path(place).parents for place in found["places"])
    assert found["new"] == [] and found["caches"] == []
    assert {"weights", "jobs"} <= set(found["left"])

    # The script inside the installed extension finds what the panel has installed.
    (tmp_path / "cube.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 0 1\nf 1 2 3\n")
    run = subprocess.run(
        [sys.executable, str(Path(found["folder"]) / "animate_batch.py"), "--", "--input", str(tmp_path / "cube.obj"),
         "--prompt", "it sways", "--frames", "4", "--weights", "animate3d", "--output", str(tmp_path / "out.glb")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out.glb").is_file()
