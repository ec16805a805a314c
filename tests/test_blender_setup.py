"""Installing and checking the backend: real child processes, and what stops them."""

from __future__ import annotations

import ast
import shutil
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from animate3d_addon import environment, models, setup_tasks
from animate3d_addon.setup_tasks import SetupTask

ROOT = Path(__file__).resolve().parent.parent


def finish(task: SetupTask, seconds: float = 90.0) -> SetupTask:
    deadline = time.monotonic() + seconds
    while not task.is_done:
        assert time.monotonic() < deadline, task.lines
        task.poll()
        time.sleep(0.02)
    return task


def test_check_has_a_line_for_each_check(tmp_path):
    task = finish(SetupTask.start("check", setup_tasks.check_arguments(sys.executable), tmp_path / "log"))
    assert task.error is None
    assert any(line.startswith("ok   Python") for line in task.lines)
    assert "Device" in task.report and "no error" in task.report


def test_a_python_without_the_packages_is_told(tmp_path):
    import venv

    venv.create(tmp_path / "empty", with_pip=False, symlinks=True)
    python = str(environment._python_in(tmp_path / "empty"))
    task = finish(SetupTask.start("check", setup_tasks.check_arguments(python), tmp_path / "log"))
    assert task.error is not None and "Traceback" not in task.error.message


def test_install_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """The real venv and pip, with packages that are small and here: nothing is complete before the end."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "requirements.txt").write_text("no-such-package-anywhere==1.0\n")
    monkeypatch.setattr(environment, "TORCH", "pip")  # the one package that is certainly there
    said = []
    folder = tmp_path / "environment"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    with pytest.raises(environment.Failed, match="packages can't be installed"):
        environment.install(folder, source, lambda kind, **content: said.append((kind, content)))
    assert environment.python_of(folder) is None and environment._python_in(folder).exists()
    assert [content["stage"] for kind, content in said if kind == "progress"][-1] == "Installing packages"
    (source / "requirements.txt").write_text("pip\n")
    with pytest.raises(environment.Failed, match="does not work"):  # doctor finds no torch in it
        environment.install(folder, source, lambda *_, **__: None)
    assert environment.python_of(folder) is None


def test_no_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1e9))
    with pytest.raises(environment.Failed, match="GB are needed"):
        environment.install(tmp_path / "environment", ROOT, lambda *_, **__: None)


def test_cancel_ends_what_was_started(tmp_path):
    arguments = ["run", sys.executable, "-c", "import time; print('at work', flush=True); time.sleep(60)"]
    task = SetupTask.start("check", arguments, tmp_path / "log")
    deadline = time.monotonic() + 30
    while "at work" not in task.lines and time.monotonic() < deadline:
        task.poll()
        time.sleep(0.02)
    began = time.monotonic()
    task.cancel()
    while task.process.alive and time.monotonic() - began < 5:
        time.sleep(0.02)
    assert task.error.kind == "cancelled" and not task.process.alive


def test_what_the_released_model_is_made_of():
    from backend.weights import sources

    shown = [(source.repository, source.size, source.licence.name) for source in models.released_sources()]
    assert shown == [(source.repository, source.size, source.licence.name) for source in sources.REQUIRED]


def test_torch_is_the_same_everywhere():
    tree = ast.parse((ROOT / "tools" / "setup.py").read_text(encoding="utf-8"))
    pins = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert pins["TORCH"] == environment.TORCH
