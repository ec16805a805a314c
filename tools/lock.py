"""Pins all that the add-on's “Install Backend” fetches, with the hashes of every platform's files, as PyPI lists them.

    python tools/lock.py        needs uv (pip install uv) and the network

requirements.lock        what every machine gets, PyTorch's own needs among it
requirements-torch.lock  PyTorch from PyPI and the CUDA libraries that its Linux build asks for
requirements-cuda.lock   what there is to add where there is an NVIDIA GPU

PyTorch's own index (CPU build for Linux, CUDA build for Windows) publishes other files of the same version, which are
not in here: pip compares those with the hashes of that index.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from animate3d_addon.environment import TORCH  # noqa: E402

OLDEST_PYTHON = "3.11"  # of Blender 4.2
OF_TORCH = re.compile(r"(torch|triton|nvidia|cuda)\b")
HEAD = "# Made by tools/lock.py, which says what is in here.\n"
Block = tuple[str, str]  # a package's name, and its lines: version, marker, hashes


def main() -> int:
    plain, full = ("requirements.txt",), ("requirements.txt", "requirements-cuda.txt")
    everything = compiled(full)
    needed = {name for name, _ in compiled(plain)}
    torch = [(name, lines) for name, lines in everything if OF_TORCH.match(name)]
    common = [(name, lines) for name, lines in everything if name in needed and not OF_TORCH.match(name)]
    extra = [(name, lines) for name, lines in everything if name not in needed and not OF_TORCH.match(name)]
    for file, blocks in (
        ("requirements.lock", common),
        ("requirements-torch.lock", torch),
        ("requirements-cuda.lock", extra),
    ):
        (ROOT / file).write_text(HEAD + "".join(lines for _, lines in blocks), encoding="utf-8")
        print(f"{file}: {len(blocks)} packages")
    return 0


def compiled(files: tuple[str, ...]) -> list[Block]:
    """Everything that torch and these requirements need, on every platform, sorted by name."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.txt"
        source.write_text("\n".join([TORCH, *(f"-r {ROOT / file}" for file in files)]), encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--no-config", "--quiet", "--universal"]
        command += ["--python-version", OLDEST_PYTHON, "--generate-hashes", "--no-header", "--no-annotate"]
        command += ["--default-index", "https://pypi.org/simple", str(source)]
        text = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    blocks = re.findall(r"^(?:\S.*\n(?:[ \t].*\n)*)", text, re.MULTILINE)
    return [(re.match(r"[A-Za-z0-9._-]+", block)[0].lower(), block) for block in blocks]


if __name__ == "__main__":
    sys.exit(main())
