"""The folder that `make extension` fills is a repository: Blender's own tool reads its index and installs from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("bpy")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.build_extension import extension_tool  # noqa: E402


def run(*command: object) -> str:
    result = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(ROOT / "tools" / "build_extension.py", "--out", folder)
    return folder


def test_blender_installs_from_the_index(repository, tmp_path):
    remote = ["--local-dir", tmp_path, "--remote-url", (repository / "index.json").as_uri()]
    run(extension_tool(), "sync", *remote)
    run(extension_tool(), "install", *remote, "animate3d")
    assert (tmp_path / "animate3d" / "animate3d_addon" / "ui.py").is_file()
    assert (tmp_path / "animate3d" / "weights" / "starter" / "model.json").is_file()


def test_the_index_says_what_users_are_asked_to_allow(repository):
    (entry,) = json.loads((repository / "index.json").read_text())["data"]
    assert entry["id"] == "animate3d" and entry["blender_version_min"] == "4.2.0"
    assert set(entry["permissions"]) == {"files", "network", "clipboard"} and all(entry["permissions"].values())
    assert entry["archive_size"] < 40e6  # the extension and its model
    assert entry["archive_url"] in (repository / "index.html").read_text()
