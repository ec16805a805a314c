"""Where the models' weights lie, and which model is meant."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from backend.protocol import UserError, read_json

NAMES = ("starter", "animate3d")
CONFIG = "model.json"
_SOURCE = Path(__file__).resolve().parent.parent / "weights"


def home() -> Path:
    """The folder of the named models: `ANIMATE3D_WEIGHTS`, or `weights` beside the backend."""
    return Path(os.environ.get("ANIMATE3D_WEIGHTS") or _SOURCE)


def find(weights: str) -> Path:
    """The folder of a setting `starter | animate3d | a folder`; raises `UserError` where there is no model in it."""
    folder = home() / weights if weights in NAMES else Path(weights)
    if (folder / CONFIG).is_file():
        return folder
    if weights in NAMES:
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


def identity(folder: Path) -> str:
    """Changes whenever the model does, without reading gigabytes."""
    stamps = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files(folder)]
    text = f"{sorted(config(folder).items())!r}{stamps!r}"
    return hashlib.sha256(text.encode()).hexdigest()
