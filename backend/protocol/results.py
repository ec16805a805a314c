"""What the backend makes: the video, the motion, the rig, the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .errors import UserError
from .storage import read_npz, write_json, write_npz


@dataclass(frozen=True)
class Video:
    """The generated multi-view video; `video/video.npz`."""

    frames: np.ndarray  # [4, F, H, W, C] uint8; C = 3 on grey 0.5, or C = 4 straight alpha
    appearance: str  # color | position: what the colours mean

    def save(self, job: Path, forming: bool = False) -> None:
        write_npz(self.path(job, forming), frames=self.frames, appearance=np.array(self.appearance))

    @classmethod
    def load(cls, job: Path, forming: bool = False) -> Video:
        data = read_npz(cls.path(job, forming), ("frames", "appearance"))
        return cls(data["frames"], str(data["appearance"]))

    @staticmethod
    def path(job: Path, forming: bool = False) -> Path:
        """Of the video, or of what it looks like while it is made: fewer frames, to look at, gone at the end."""
        return Path(job) / "video" / ("forming.npz" if forming else "video.npz")


@dataclass(frozen=True)
class Motion:
    """The result; `motion.npz`. Frame 0 is the rest pose: its offsets are exactly zero."""

    offsets: np.ndarray  # [F, V, 3] float32, world units and axes, per vertex of the subject

    def save(self, job: Path) -> None:
        write_npz(Path(job) / "motion.npz", offsets=self.offsets)

    @classmethod
    def load(cls, job: Path) -> Motion:
        return cls(**read_npz(Path(job) / "motion.npz", ("offsets",)))


@dataclass(frozen=True)
class Rig:
    """The motion as a skeleton's; `rig.npz`. World space; frame 0 is the rest pose.

    A bone takes x to R (x - head) + head + translation, with R from its quaternion, whatever its parent does; a vertex
    is at the weighted mean of where its bones take it (linear blend skinning).
    """

    names: tuple[str, ...]  # of the B bones; the root is first, parents come before their children
    heads: np.ndarray  # [B, 3] float64, at rest
    tails: np.ndarray  # [B, 3] float64
    parents: np.ndarray  # [B] int32, -1 for the root
    bones: np.ndarray  # [V, K] int32: on which bones each vertex of the subject hangs
    weights: np.ndarray  # [V, K] float32, rows sum to 1
    quats: np.ndarray  # [F, B, 4] float64 wxyz
    translations: np.ndarray  # [F, B, 3] float64, of the heads

    def save(self, job: Path) -> None:
        write_npz(Path(job) / "rig.npz", **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, job: Path) -> Rig:
        """Raises `UserError` where the file is missing or damaged."""
        data = read_npz(Path(job) / "rig.npz", tuple(cls.__dataclass_fields__))
        rig = cls(**{**data, "names": tuple(map(str, data["names"]))})
        if not rig._fits_together():
            raise UserError("The rig in the job folder is damaged.", "Start the job again.")
        return rig

    def _fits_together(self) -> bool:
        count, frames = len(self.names), len(self.quats)
        return bool(
            count > 0
            and self.heads.shape == self.tails.shape == (count, 3)
            and self.parents.shape == (count,)
            and (self.parents < np.arange(count)).all()
            and self.bones.shape == self.weights.shape
            and self.bones.ndim == 2
            and self.bones.size > 0
            and 0 <= self.bones.min() <= self.bones.max() < count
            and self.quats.shape == (frames, count, 4)
            and self.translations.shape == (frames, count, 3)
            and np.isfinite(self.quats).all()
            and np.isfinite(self.translations).all()
        )


@dataclass
class Report:
    """`REPORT.json`: numbers and names, no prose."""

    seconds: dict[str, float] = field(default_factory=dict)  # per stage
    peak_memory_gb: dict[str, float] = field(default_factory=dict)  # per stage; all processes together
    peak_gpu_memory_gb: dict[str, float] = field(default_factory=dict)  # per stage; empty without a GPU
    device: str = ""
    seed: int = 0
    settings: dict = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        write_json(Path(path), asdict(self))
