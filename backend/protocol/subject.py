"""What is to move: captured meshes, or a file of Gaussians."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import UserError
from .space import CAMERA_FOVY, UP_AXES
from .storage import read_json, read_npz, write_json, write_npz


@dataclass(frozen=True)
class Subject:
    """What capture found; `subject/`. Images are PNG files beside it, 8-bit RGBA, straight alpha, sRGB.

    condition_0..3.png   the four condition views in true colours
    position_0..3.png    the same views, position coded (`position_code` of the rest position, no sRGB curve)
    appearance_00...png  the ring of appearance views in true colours
    """

    vertices: np.ndarray  # [V, 3] float32, subject space; all objects joined
    faces: np.ndarray  # [T, 3] int32, triangles
    weld: np.ndarray  # [V] int32: index into the distinct positions, 0..U-1
    to_world: np.ndarray  # [4, 4] float64, subject space to world space
    object_names: tuple[str, ...]  # in the order in which they were joined
    object_counts: tuple[int, ...]  # vertices of each
    condition_c2w: np.ndarray  # [4, 4, 4] float64
    appearance_c2w: np.ndarray  # [K, 4, 4] float64
    condition_size: int  # pixels, square
    appearance_size: int
    fovy: float = CAMERA_FOVY  # degrees

    def save(self, job: Path) -> None:
        folder = Path(job) / "subject"
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in self._ARRAYS}
        write_npz(folder / "mesh.npz", **arrays)
        # Written last: its presence says that the stage is complete.
        write_json(folder / "subject.json", {name: getattr(self, name) for name in self._PLAIN})

    @classmethod
    def load(cls, job: Path) -> Subject:
        folder = Path(job) / "subject"
        plain = read_json(folder / "subject.json")
        try:
            plain = {name: plain[name] for name in cls._PLAIN}
            for name in ("object_names", "object_counts"):
                plain[name] = tuple(plain[name])
            subject = cls(**read_npz(folder / "mesh.npz", cls._ARRAYS), **plain)
            fits = subject._fits_together()
        except (KeyError, TypeError, ValueError, IndexError):
            fits = False
        if not fits:
            raise UserError("The captured object in the job folder is damaged.", "Start the job again.")
        return subject

    def _fits_together(self) -> bool:
        count = len(self.vertices)
        return bool(
            count > 0
            and self.vertices.shape == (count, 3)
            and np.isfinite(self.vertices).all()
            and self.faces.ndim == 2
            and self.faces.shape[1] == 3
            and (self.faces.size == 0 or (self.faces.min() >= 0 and self.faces.max() < count))
            and self.weld.shape == (count,)
            and self.weld.min() >= 0
            and self.weld.max() < count
            and sum(self.object_counts) == count
            and len(self.object_names) == len(self.object_counts)
            and self.to_world.shape == (4, 4)
            and self.condition_c2w.shape == (4, 4, 4)
            and self.appearance_c2w.shape[1:] == (4, 4)
        )

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """The two corners of the rest bounding box, [3] each, in subject space: what position codes refer to."""
        return self.vertices.min(axis=0), self.vertices.max(axis=0)

    @staticmethod
    def image_path(job: Path, kind: str, index: int) -> Path:
        """Where an image lies; `kind` is condition, position or appearance."""
        number = f"{index:02d}" if kind == "appearance" else str(index)
        return Path(job) / "subject" / f"{kind}_{number}.png"

    _ARRAYS = ("vertices", "faces", "weld", "to_world", "condition_c2w", "appearance_c2w")
    _PLAIN = ("object_names", "object_counts", "condition_size", "appearance_size", "fovy")


@dataclass(frozen=True)
class SplatSource:
    """A file of Gaussians in the place of an object; `subject/splats.ply`, and how it stands. The backend captures it.

    World space is the file's own space then.
    """

    up: str = "z"  # z | y | y-down: where the file's top is

    def __post_init__(self) -> None:
        if self.up not in UP_AXES:
            raise UserError(f"“{self.up}” is no direction.", f"Up can be {', '.join(UP_AXES)}.")

    @staticmethod
    def path(job: Path) -> Path:
        return Path(job) / "subject" / "splats.ply"

    @property
    def upright(self) -> np.ndarray:
        """The rotation [4, 4] float64 from z up and the front towards -y to the file's axes."""
        to_file = np.eye(4)
        to_file[:3, :3] = UP_AXES[self.up]
        return to_file

    def save(self, job: Path, file: Path) -> None:
        """Copies the file, so that the job stands alone."""
        self.path(job).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, self.path(job))
        write_json(Path(job) / "subject" / "source.json", {"up": self.up})

    @classmethod
    def load(cls, job: Path) -> SplatSource | None:
        """None where the job is about meshes. Raises `UserError` where the file is damaged."""
        if not cls.path(job).exists():
            return None
        return cls(str(read_json(Path(job) / "subject" / "source.json").get("up")))
