"""The backend's own Python environment in the user's folder: made, filled, checked. No bpy in it.

Run as a script by any Python from 3.11 on, Blender's own too; it needs the standard library alone:

    python environment.py install FOLDER SOURCE      a virtual environment with the packages of SOURCE/*.lock
    python environment.py run PYTHON ARGUMENT…       any command of the backend, its lines passed on

It prints messages as the backend does, one JSON object a line: progress {stage, step, steps}, line {text}, then done or
error {kind, message, hint}. It ends, and what it has started too, when its stdin ends. Files that pip has fetched
whole stay in its cache, and packages that are there stay there: a second try goes on where the first one stopped.

Every file is compared with the hash in a lock file (`tools/lock.py`). The one exception is PyTorch where its own index
or the user's mirror has another build than PyPI: then the version is pinned, and the hash is that index's word.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

TORCH = "torch==2.13.0"
COMPLETE = "complete"  # a file that is written last of all
# Measured: packages of 1.7 and 5.6 GB, and what they are unpacked from, which lies in pip's cache, too.
FREE_GB = {"cpu": 4.0, "cuda": 12.0}
CUDA_TORCH_GB = 11.0  # of these: PyTorch with CUDA, 4.7 GB, and 2.7 GB of files twice
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_INDEX = "https://download.pytorch.org/whl/cu128"  # Windows: there the build on PyPI has no CUDA
GO_ON = "Check the network and the free space, then install again: it goes on from here."


class Failed(Exception):
    """One sentence, and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def python_of(folder: Path) -> Path | None:
    """The Python of a complete environment, None where there is none."""
    python = _python_in(folder)
    return python if (folder / COMPLETE).is_file() and python.exists() else None


def install(folder: Path, source: Path, say: Callable[..., None]) -> None:
    """Makes the environment, or goes on with it. Raises `Failed`."""
    kind = "cuda" if shutil.which("nvidia-smi") else "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMPLETE).unlink(missing_ok=True)
    _ask_for_room(folder, FREE_GB[kind])
    steps = _steps(folder, source, kind)
    for number, (words, command_of, sentence) in enumerate(steps):
        say("progress", stage=words, step=number, steps=len(steps))
        command = command_of()
        if command and _run(command, say):
            raise Failed(sentence, GO_ON if number else "Name an existing Python in the preferences.")
    (folder / COMPLETE).write_text(TORCH, encoding="utf-8")


def _ask_for_room(folder: Path, needed: float) -> None:
    """Raises `Failed` where there is less than so many GB."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed:
        raise Failed(
            f"There are {free:.1f} GB free where {needed:.0f} GB are needed ({folder}).",
            "Make room, or choose an existing Python.",
        )


def _steps(folder: Path, source: Path, kind: str) -> list[tuple[str, Callable[[], list[str]], str]]:
    """What is to be done: in words, the command as it has to be by then, and the sentence where it fails."""
    python = _python_in(folder)
    # Wheels alone: nothing that is downloaded is run while it is installed.
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
    venv = [sys.executable, "-m", "venv", str(folder)]
    names = ["requirements.lock", *(["requirements-cuda.lock"] if kind == "cuda" else [])]
    works = "The environment is there, and does not work."
    return [
        (
            "Making the environment",
            lambda: [] if _has_pip(python) else venv,
            "The environment can't be made: this Python has no working venv module.",
        ),
        ("Installing packages", lambda: [*pip, *_locked(source, *names)], "The packages can't be installed."),
        (
            "Installing PyTorch",
            lambda: [*pip, *_torch_that_fits(folder, source, kind)],
            "PyTorch can't be installed.",
        ),
        ("Checking", lambda: [str(python), "-P", "-m", "backend", "doctor"], works),
    ]


def _locked(source: Path, *names: str) -> list[str]:
    """pip's options for everything in lock files, and nothing else."""
    return ["--require-hashes", "--no-deps", *(part for name in names for part in ("-r", str(source / name)))]


def _torch(source: Path, kind: str, mirrored: bool, platform: str = sys.platform) -> list[str]:
    """pip's options for the build of torch that fits; where pip is set up for a mirror, that mirror decides."""
    if mirrored:
        return [TORCH]
    if platform == "linux" and kind == "cpu":
        return [TORCH, "--no-deps", "--index-url", CPU_INDEX]
    if platform == "win32" and kind == "cuda":
        return [TORCH, "--no-deps", "--index-url", CUDA_INDEX]
    return _locked(source, "requirements-torch.lock")


def _torch_that_fits(folder: Path, source: Path, kind: str) -> list[str]:
    """`_torch`; some mirrors have the build with CUDA alone. Raises `Failed` where there is no room for that."""
    python = _python_in(folder)
    mirrored = _mirrored(python)
    if mirrored and kind == "cpu" and _brings_cuda(python):
        _ask_for_room(folder, CUDA_TORCH_GB)
    return _torch(source, kind, mirrored)


def _brings_cuda(python: Path) -> bool:
    """Whether the build of torch that pip would install needs NVIDIA's libraries. At most its own file is fetched."""
    ask = ["-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", "--report", "-", "--only-binary=:all:", TORCH]
    said = subprocess.run([str(python), *ask], capture_output=True, text=True, encoding="utf-8", check=False).stdout
    with contextlib.suppress(ValueError):  # the installation itself will say what is wrong
        needed = [name for each in json.loads(said)["install"] for name in each["metadata"].get("requires_dist", ())]
        return any(name.startswith(("nvidia-", "cuda-")) for name in needed)
    return False


def _mirrored(python: Path) -> bool:
    """Whether the user's pip fetches from elsewhere than PyPI; asked of a Python that has pip: Blender's may not."""
    config = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    return any(key in config.stdout for key in ("index-url", "find-links", "no-index"))


def _has_pip(python: Path) -> bool:
    """Whether the environment is as far as that: one that was cut short may have a Python and no pip."""
    if not python.exists():
        return False
    return subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def _python_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


_child: subprocess.Popen | None = None


def _run(command: Sequence[str], say: Callable[..., None]) -> int:
    """Runs a command and passes its lines on. Returns its exit code."""
    global _child
    _child = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    for line in _child.stdout:
        if line.strip():
            say("line", text=line.rstrip())
    return _child.wait()


def _end_with_stdin() -> None:
    """Whoever started us has gone, or has cancelled."""
    while os.read(0, 4096):
        pass
    if _child is not None:
        with contextlib.suppress(OSError):
            _child.kill()
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    def say(message: str, /, **content: object) -> None:
        print(json.dumps({"type": message, **content}), flush=True)

    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        if arguments[0] == "install":
            install(Path(arguments[1]), Path(arguments[2]), say)
        elif _run(arguments[1:], say):
            raise Failed("Something is not as it should be.", "See the lines above.")
    except Failed as failed:
        say("error", kind="bad_input", message=failed.message, hint=failed.hint)
        return 1
    except OSError as error:
        say("error", kind="bad_input", message=f"That can't be done: {error}.", hint="Choose another place.")
        return 1
    say("done")
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
