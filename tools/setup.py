"""Brings a bare machine to where `make demo` and `make test` run: system libraries, .venv, pinned packages.

Standard library only. `python3 tools/setup.py` does what is missing and says what it does; a second run takes no time.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
TORCH = "torch==2.13.0"
# What `import bpy` loads, and the Debian / Ubuntu package that brings it.
LIBRARIES = {
    "X11": "libx11-6",
    "Xrender": "libxrender1",
    "Xfixes": "libxfixes3",
    "Xi": "libxi6",
    "xkbcommon": "libxkbcommon0",
    "SM": "libsm6",
    "GL": "libgl1",
    "EGL": "libegl1",
}


def main() -> None:
    if sys.version_info[:2] != (3, 11):
        stop(
            f"Blender's Python package needs Python 3.11, and this is {sys.version.split()[0]}.",
            "Install Python 3.11 and run: make PYTHON=python3.11 demo",
        )
    install_system_libraries()
    install_packages()


def stop(sentence: str, advice: str) -> None:
    print(f"{sentence} {advice}", file=sys.stderr)
    sys.exit(1)


def install_system_libraries() -> None:
    """Blender as a Python package needs a few X11 and GL libraries, also where there is no display."""
    if not sys.platform.startswith("linux"):
        return
    missing = [package for library, package in LIBRARIES.items() if not ctypes.util.find_library(library)]
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    advice = f"Install them with: sudo {' '.join(command)}"
    if not shutil.which("apt-get"):
        stop(f"Blender needs these libraries: {' '.join(missing)}.", "Install them with your system's package manager.")
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and not shutil.which("sudo"):
        stop(f"Blender needs these system packages: {' '.join(missing)}.", advice)
    print(f"Installing system packages: {' '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*sudo, "apt-get", "update", "-qq"], env=environment, check=False, stdout=subprocess.DEVNULL)
    if subprocess.run([*sudo, *command], env=environment, check=False, stdout=subprocess.DEVNULL).returncode:
        stop(f"These system packages could not be installed: {' '.join(missing)}.", advice)


def install_packages() -> None:
    """The pinned packages into .venv, torch first, so that nothing else draws a larger build of it."""
    requirements = [ROOT / "requirements.txt", ROOT / "requirements-dev.txt"]
    if cuda := shutil.which("nvidia-smi") is not None:
        requirements.append(ROOT / "requirements-cuda.txt")
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in requirements) + TORCH.encode()).hexdigest()
    stamp = VENV / "complete"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print("Making .venv")
        run([sys.executable, "-m", "venv", str(VENV)], "The virtual environment could not be made.")
    print("Installing packages (about 2.5 GB on disk, a minute or two)")
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    run([*pip, TORCH, *torch_source(cuda)], "PyTorch could not be installed.")
    files = [argument for path in requirements for argument in ("-r", str(path))]
    run([*pip, *files], "The Python packages could not be installed.")
    stamp.write_text(wanted)


def torch_source(cuda: bool) -> list[str]:
    """Without an NVIDIA GPU on Linux, PyTorch's own index has a build that is several GB smaller than PyPI's.

    Where pip is set up for a mirror, that mirror decides.
    """
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    mirror = any(key in configured for key in ("index-url", "find-links", "no-index"))
    if cuda or mirror or not sys.platform.startswith("linux"):
        return []
    return ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]


def run(command: list[str], sentence: str) -> None:
    if subprocess.run(command, check=False).returncode:
        stop(sentence, "Check the network connection and the free disk space, then run the same command again.")


if __name__ == "__main__":
    main()
