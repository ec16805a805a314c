"""Installing and checking the backend: real child processes, and what stops them."""

from __future__ import annotations

import ast
import ensurepip
import hashlib
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from backend_python import PYTHON

from animate3d_addon import environment, models, setup_tasks
from animate3d_addon.setup_tasks import SetupTask

ROOT = Path(__file__).resolve().parent.parent


def finish(task: SetupTask, seconds: float = 240.0) -> SetupTask:
    deadline = time.monotonic() + seconds
    while not task.is_done:
        assert time.monotonic() < deadline, task.lines
        task.poll()
        time.sleep(0.02)
    return task


def test_check_has_a_line_for_each_check(tmp_path):
    task = finish(SetupTask.start("check", setup_tasks.check_arguments(PYTHON), tmp_path / "log"))
    assert task.error is None
    assert any(line.startswith("ok   Python") for line in task.lines)
    assert "GPU" in task.report and "no error" in task.report


def test_a_python_without_the_packages_is_told(tmp_path):
    import venv

    venv.create(tmp_path / "empty", with_pip=False, symlinks=True)
    python = str(environment._python_in(tmp_path / "empty"))
    task = finish(SetupTask.start("check", setup_tasks.check_arguments(python), tmp_path / "log"))
    assert "not as it should be" in task.error.message and "lines above" in task.error.hint


def test_install_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """The real venv and pip, with packages that are small and here: nothing is complete before the end."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "requirements.lock").write_text(f"no-such-package-anywhere==1.0 --hash=sha256:{64 * '0'}\n")
    monkeypatch.setattr(environment, "TORCH", "pip")  # the one package that is certainly there
    said = []
    folder = tmp_path / "environment"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    with pytest.raises(environment.Failed, match="packages can't be installed"):
        environment.install(folder, source, lambda kind, **content: said.append((kind, content)))
    assert environment.python_of(folder) is None and environment._python_in(folder).exists()
    assert [content["stage"] for kind, content in said if kind == "progress"][-1] == "Installing packages"
    (source / "requirements.lock").write_text(f"pip=={ensurepip.version()} --hash=sha256:{64 * '0'}\n")
    with pytest.raises(environment.Failed, match="does not work"):  # doctor finds no torch in it
        environment.install(folder, source, lambda *_, **__: None)
    assert environment.python_of(folder) is None


def test_a_mirror_is_found_by_a_python_that_has_no_pip(tmp_path, monkeypatch):
    """As Blender's own is where a Linux distribution has built it."""
    import venv

    venv.create(tmp_path / "blender", with_pip=False, symlinks=True)
    monkeypatch.setattr(environment.sys, "executable", str(environment._python_in(tmp_path / "blender")))
    monkeypatch.setattr(environment, "_torch", lambda source, kind, mirrored: seen.append(mirrored) or ["pip"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    seen: list[bool] = []
    (tmp_path / "requirements.lock").write_text(f"pip=={ensurepip.version()} --hash=sha256:{64 * '0'}\n")
    with pytest.raises(environment.Failed, match="does not work"):
        environment.install(tmp_path / "environment", tmp_path, lambda *_, **__: None)
    assert seen == [True]


def test_no_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1e9))
    with pytest.raises(environment.Failed, match="GB are needed"):
        environment.install(tmp_path / "environment", ROOT, lambda *_, **__: None)


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """A package of one empty module, as a file that pip installs."""
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.parametrize("brings_cuda", [False, True])
def test_no_room_for_what_a_mirror_has(tmp_path, monkeypatch, brings_cuda):
    """Where its only build of PyTorch is the one with CUDA, pip itself says so before gigabytes are fetched."""
    name, version = environment.TORCH.split("==")
    wheel(tmp_path, name, version, *(["nvidia-cudnn-cu13==9.20.0.48", "sympy"] if brings_cuda else ["sympy"]))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_IGNORE_INSTALLED", "1")  # this Python may have it
    monkeypatch.setattr(environment, "_python_in", lambda folder: Path(sys.executable))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(5e9))
    if brings_cuda:
        with pytest.raises(environment.Failed, match=r"5\.0 GB free where 11 GB are needed"):
            environment._torch_that_fits(tmp_path, ROOT, "cpu")
    else:
        assert environment._torch_that_fits(tmp_path, ROOT, "cpu") == [environment.TORCH]


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
    sources = pytest.importorskip("backend.weights.sources", exc_type=ImportError)

    shown = [(source.repository, source.size, source.licence.name) for source in models.released_sources()]
    assert shown == [(source.repository, source.size, source.licence.name) for source in sources.REQUIRED]


def test_everything_that_is_installed_is_locked_with_its_hashes():
    """The lock files hold what is required, in the same versions; `tools/lock.py` makes them anew."""
    locked, bare = {}, []
    for name in ("requirements.lock", "requirements-torch.lock", "requirements-cuda.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for block in re.findall(r"^(?:[A-Za-z].*\n(?:[ \t].*\n)*)", text, re.MULTILINE):
            locked.setdefault(re.match(r"[\w.-]+", block)[0], set()).add(re.match(r"\S+", block)[0])
            bare += [block] if "--hash=sha256:" not in block else []
    assert not bare and len(locked) > 60
    required = [environment.TORCH]
    for name in ("requirements.txt", "requirements-cuda.txt"):
        required += [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    for line in required:
        line = line.replace("_", "-")
        assert line in locked[line.partition("==")[0]]


def test_a_file_that_was_changed_is_not_installed(tmp_path):
    """Real pip, and a package of ours whose hash is not the one that was written down."""
    digest = hashlib.sha256(wheel(tmp_path, "changed", "1.0").read_bytes()).hexdigest()
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(tmp_path)]
    for known, works in ((digest, True), (64 * "0", False)):
        (tmp_path / "requirements.lock").write_text(f"changed==1.0 --hash=sha256:{known}\n")
        command = [*pip, "--target", str(tmp_path / known), *environment._locked(tmp_path, "requirements.lock")]
        assert (subprocess.run(command, capture_output=True, check=False).returncode == 0) is works
        assert (tmp_path / known / "changed.py").exists() is works


def test_which_torch(tmp_path):
    """PyPI's with its hash, but for the two builds that are only in PyTorch's own index, and for mirrors."""
    kinds = {
        (platform, kind, mirrored): environment._torch(tmp_path, kind, mirrored, platform)
        for platform in ("linux", "win32", "darwin")
        for kind in ("cpu", "cuda")
        for mirrored in (False, True)
    }
    own_index = {key for key, options in kinds.items() if "--index-url" in options}
    assert own_index == {("linux", "cpu", False), ("win32", "cuda", False)}
    assert all(options == [environment.TORCH] for (*_, mirrored), options in kinds.items() if mirrored)
    assert {key for key, options in kinds.items() if "--require-hashes" in options} == {
        ("linux", "cuda", False), ("win32", "cpu", False), ("darwin", "cpu", False), ("darwin", "cuda", False),
    }  # fmt: skip


def test_torch_is_the_same_everywhere():
    tree = ast.parse((ROOT / "tools" / "setup.py").read_text(encoding="utf-8"))
    pins = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert pins["TORCH"] == environment.TORCH
