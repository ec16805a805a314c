"""Where the models' weights lie, and which model is meant."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from backend.protocol import UserError, read_json

NAMES = ("starter", "animate3d")
CONFIG = "model.json"
PULL = "python -m backend weights pull animate3d"
_SOURCE = Path(__file__).resolve().parents[2] / "weights"


def home() -> Path:
    """The folder of the named models: `ANIMATE3D_WEIGHTS`, or `weights` beside the backend."""
    return Path(os.environ.get("ANIMATE3D_WEIGHTS") or _SOURCE)


def place(name: str) -> Path:
    """The folder of a named model, installed or not. The starter is with the program unless another is in `home()`."""
    folder = home() / name
    return _SOURCE / name if name == "starter" and not (folder / CONFIG).is_file() else folder


def find(weights: str) -> Path:
    """The folder of a setting `starter | animate3d | a folder`; raises `UserError` where there is no model in it."""
    folder = place(weights) if weights in NAMES else Path(weights)
    if (folder / CONFIG).is_file():
        return folder
    if weights == "animate3d":
        sentence, hint = "The weights “animate3d” are not installed.", f"Install them with: {PULL}"
    elif weights in NAMES:
        sentence, hint = f"The weights “{weights}” are not installed.", f"They belong into {folder}."
    elif folder.is_dir():
        sentence, hint = f"The folder {folder} holds no model: it has no {CONFIG}.", "Choose a model's folder."
    else:
        sentence, hint = f"There are no weights “{weights}”.", f"Choose {', '.join(NAMES)} or a model's folder."
    raise UserError(sentence, hint, kind="missing_weights")


def config(folder: Path) -> dict:
    """The model's description; raises `UserError` where it can't be read."""
    try:
        return read_json(folder / CONFIG)
    except UserError:
        raise UserError(
            f"The model's {CONFIG} in {folder} can't be read.", "Install the weights again.", kind="missing_weights"
        ) from None


def files(folder: Path) -> list[Path]:
    """All weight files of a model."""
    return sorted(folder.rglob("*.safetensors"))


def size(folder: Path) -> int:
    """Bytes of a model's weights."""
    return sum(path.stat().st_size for path in files(folder))


def dtype(folder: Path) -> str:
    """How a model's weights are stored, as its first tensor says; "?" where that can't be read."""
    try:
        with safe_open(files(folder)[0], framework="np") as file:
            return file.get_slice(file.keys()[0]).get_dtype()
    except (SafetensorError, OSError, IndexError):
        return "?"


def identity(folder: Path) -> str:
    """Changes whenever the model does, without reading gigabytes."""
    stamps = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files(folder)]
    text = f"{sorted(config(folder).items())!r}{stamps!r}"
    return hashlib.sha256(text.encode()).hexdigest()
