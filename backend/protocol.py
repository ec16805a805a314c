"""What Blender and the backend agree on: the job folder, the messages, the version.

The one module that both sides import, so it needs the standard library and numpy only.

Spaces
------
*World space* is Blender's: z up, right handed, the front of an object looks along -y.
*Subject space* is the reference model's: the object's bounding box is centred at the origin, its half diagonal is
`SUBJECT_RADIUS`, z is up, and the object's front looks along +x, where the camera of azimuth 0 stands.
`Subject.to_world` maps subject space to world space. Everything in a job folder is in subject space except
`Motion.offsets`, which are in world units and axes, so that they can be used without it.

Messages
--------
Lines of JSON, each an object with a "type". One job at a time.

    to the backend      check {settings}     are the weights and the device there? -> checked | error
                        run {job}            -> progress*, notice*, forming*, preview, then done | error
                        cancel {}            ends the running job with an error of the kind "cancelled"
                        memory {}            -> memory
                        quit {}              (and the end of stdin) ends the process
    from the backend    hello {protocol, device, device_name, free_memory_gb, versions, pid}   first, or error
                        checked {appearance}                  color | position: what the model animates
                        progress {job, stage, step, steps, memory_gb}
                            step 0 when a stage starts, step == steps when it is done; memory of both processes
                        notice {job, message}                 to tell the user; no failure
                        preview {job, path}                   a .gif of the generated video
                        forming {job, path}                   `video/forming.npz` shows it while it is sampled
                        done {job, report}
                        error {job, kind, message, hint, log}
                        memory {peak_gb}      both processes together, since it was last asked or a stage ended

Cameras are OpenGL ones (x right, y up, looking along -z), given as camera-to-world matrices `c2w`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

PROTOCOL_VERSION = 1  # both sides must have the same; there is no negotiation

SUBJECT_RADIUS = 0.85  # half diagonal of the bounding box in subject space: leaves room in the picture for motion
CAMERA_DISTANCE = 3.0  # the reference's reconstruction cameras
CAMERA_FOVY = 40.0  # degrees; images are square
CAMERA_ELEVATION = 15.0  # degrees
VIEW_AZIMUTHS = (0.0, 90.0, 180.0, 270.0)  # degrees; 0 looks at the front
POSITION_CODE_RANGE = (0.1, 0.9)  # colours of the two ends of the rest bounding box in position-coded views

UP_AXES = {  # of a file of Gaussians: the matrix from z up to the file's axes; the front looks along -y, +z, -z
    "z": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "y": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)),
    "y-down": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
}

STAGES = ("capture", "video", "matte", "splats", "motion", "refine", "rig", "frames", "bake")
JOB_ENTRIES = (  # everything that either side writes into a job folder
    "subject", "video", "job.json", "stages.json", "report.json", "matte.npz", "splats.npz", "splats.ply",
    "reconstruction", "motion.npz", "rig.npz", "frames", "backend.log", "blender.log",
)  # fmt: skip
PRESETS = ("draft", "standard", "paper")
DEVICES = ("auto", "cpu", "cuda", "mps")
SOLVERS = ("ddim", "dpm", "unipc")
MAX_STEPS, MAX_PASSES, MAX_GUIDANCE = 1000, 20, 100
MEMORY_MODES = ("auto", "fast", "balanced", "low")
MAX_PROMPT = 500  # characters; the models read about 77 tokens
MIN_FRAMES, MAX_FRAMES = 2, 32  # the models' time tables end at 32
MAX_SEED = 2**63 - 1
ERROR_KINDS = ("bad_input", "missing_weights", "out_of_memory", "cancelled", "internal")


class UserError(Exception):
    """Something a user can mend. `message` is one plain sentence, `hint` says what to do next."""

    def __init__(self, message: str, hint: str = "", kind: str = "bad_input") -> None:
        if kind not in ERROR_KINDS:
            raise ValueError(f"unknown error kind {kind!r}")
        super().__init__(message)
        self.message, self.hint, self.kind = message, hint, kind


def orbit_c2w(azimuth: float, elevation: float, distance: float = CAMERA_DISTANCE) -> np.ndarray:
    """Camera-to-world matrix [4, 4] float64 of a camera that looks at the origin; angles in degrees.

    Azimuth runs from +x towards +y; the columns are (right, up, -look direction, position).
    """
    a, e = math.radians(azimuth), math.radians(elevation)
    back = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = np.array([-math.sin(a), math.cos(a), 0.0])  # well defined at the poles too
    c2w = np.eye(4)
    c2w[:3, 0], c2w[:3, 1], c2w[:3, 2], c2w[:3, 3] = right, np.cross(back, right), back, distance * back
    return c2w


def condition_cameras() -> np.ndarray:
    """The four cameras of the multi-view video, [4, 4, 4] float64."""
    return np.stack([orbit_c2w(azimuth, CAMERA_ELEVATION) for azimuth in VIEW_AZIMUTHS])


def subject_to_world(vertices: np.ndarray, front: float = 0.0) -> np.ndarray:
    """The matrix [4, 4] float64 that takes subject space to the world space of `vertices` [V, 3].

    `front` is where the object looks: degrees from -y, counterclockwise seen from above (90 is +x).
    Raises `UserError` where the vertices have no extent.
    """
    low, high = vertices.min(axis=0).astype(np.float64), vertices.max(axis=0).astype(np.float64)
    radius = 0.5 * float(np.linalg.norm(high - low))
    if not math.isfinite(radius) or radius <= 0.0:
        raise UserError("The object has no size: all its vertices are at one point.", "Select an object with faces.")
    to_world = np.eye(4)
    # Without a turn, subject +x is the world's -y (the front), and subject +y the world's +x.
    s, c = round(math.sin(math.radians(front)), 15), round(math.cos(math.radians(front)), 15)
    to_world[:3, :3] = np.array([[s, c, 0.0], [-c, s, 0.0], [0.0, 0.0, 1.0]]) * (radius / SUBJECT_RADIUS)
    to_world[:3, 3] = 0.5 * (low + high)
    return to_world


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 3] through an affine matrix [4, 4], in float64."""
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def position_code(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Flat colours [..., 3] in 0..1 that name each rest position [..., 3] inside the box `low`..`high` [3].

    Used with no colour management. An axis along which the box is flat gets the middle of the range.
    """
    a, b = POSITION_CODE_RANGE
    extent = np.asarray(high, np.float64) - low
    safe = np.where(extent > 0, extent, 1.0)
    unit = np.where(extent > 0, (np.asarray(points, np.float64) - low) / safe, 0.5)
    return a + (b - a) * np.clip(unit, 0.0, 1.0)


def clean_prompt(prompt: str) -> str:
    """The prompt on one line without control characters; raises `UserError` where it is empty or too long."""
    words = "".join(c if c.isprintable() else " " for c in prompt).split()
    if not words:
        raise UserError("The prompt is empty.", 'Say what shall move and how, for example "a cactus is swaying".')
    text = " ".join(words)
    if len(text) > MAX_PROMPT:
        raise UserError(
            f"The prompt is {len(text)} characters long, but {MAX_PROMPT} is the limit.", "Say it in one sentence."
        )
    return text


@dataclass(frozen=True)
class JobSettings:
    """What the user asked for; `job.json`. Raises `UserError` where a value makes no sense."""

    prompt: str
    preset: str = "draft"  # draft | standard | paper
    seed: int = 0
    frames: int = 16
    device: str = "auto"  # auto | cpu | cuda | mps
    weights: str = "starter"  # starter | animate3d | a folder
    memory: str = "auto"  # auto | fast | balanced | low: what the video model may use
    compile: bool = False  # let torch compile the video model
    steps: int | None = None  # of the sampler, per pass; None here and below: as preset and model have it
    passes: int | None = None  # of FreeInit; 1: none
    solver: str | None = None  # ddim | dpm | unipc
    guidance: float | None = None  # scale; 1 and below: none
    coarse_to_fine: bool | None = None  # earlier FreeInit passes take fewer steps
    negative_prompt: str = ""  # what the video should not be
    rig: bool = False  # also write the motion as bones, `rig.npz`
    protocol: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        kinds = {"prompt": str, "seed": int, "frames": int, "weights": str, "compile": bool, "rig": bool}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise UserError(f"The setting {name} is not a value of the right kind.", "Start the job again.")
        for name, choices in (("preset", PRESETS), ("device", DEVICES), ("memory", MEMORY_MODES)):
            if getattr(self, name) not in choices:
                raise UserError(f"The {name} is none of {', '.join(choices)}.", f"Choose another {name}.")
        if not MIN_FRAMES <= self.frames <= MAX_FRAMES:
            raise UserError(f"{self.frames} frames can't be made.", f"Ask for {MIN_FRAMES} to {MAX_FRAMES} frames.")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError("The seed is out of range.", "Choose a seed between 0 and 2^63 - 1.")
        object.__setattr__(self, "prompt", clean_prompt(self.prompt))
        self._check_sampler()

    def _check_sampler(self) -> None:
        for name, most in (("steps", MAX_STEPS), ("passes", MAX_PASSES)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= most):
                raise UserError(f"The number of {name} makes no sense.", f"Choose 1 to {most}.")
        if self.solver is not None and self.solver not in SOLVERS:
            raise UserError(f"The solver is none of {', '.join(SOLVERS)}.", "Choose another solver.")
        scale = self.guidance
        if scale is not None and (type(scale) not in (int, float) or not 0 <= scale <= MAX_GUIDANCE):
            raise UserError("The guidance scale makes no sense.", f"Choose 0 to {MAX_GUIDANCE}; 1 means none.")
        if self.coarse_to_fine not in (None, False, True) or not isinstance(self.negative_prompt, str):
            raise UserError("The settings of this job can't be read.", "Start the job again.")
        object.__setattr__(self, "negative_prompt", " ".join(self.negative_prompt.split())[:MAX_PROMPT])

    def save(self, job: Path) -> None:
        write_json(Path(job) / "job.json", asdict(self))

    @classmethod
    def load(cls, job: Path) -> JobSettings:
        data = read_json(Path(job) / "job.json")
        if data.get("protocol") != PROTOCOL_VERSION:
            raise UserError(
                f"This job folder was written by another version (protocol {data.get('protocol')}, "
                f"this one is {PROTOCOL_VERSION}).",
                "Start the job again.",
            )
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: dict) -> JobSettings:
        """Raises `UserError` where the keys or values are not those of settings."""
        try:
            return cls(**data)
        except TypeError:
            raise UserError("The settings of this job can't be read.", "Start the job again.") from None


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


def encode_message(message: str, /, **content: object) -> str:
    """One message of a type as one line of JSON, newline included."""
    return json.dumps({"type": message, **content}, ensure_ascii=True) + "\n"


def decode_message(line: str) -> dict | None:
    """The message in a line, or None where a library printed something that is no message."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None


def write_json(path: Path, data: dict) -> None:
    """Writes whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> dict:
    """Raises `UserError` where the file is missing or holds no JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"The job folder has no {path.name}.", "Start the job again.") from None
    except (ValueError, OSError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UserError(f"The file {path.name} in the job folder can't be read.", "Start the job again.")
    return data


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)


# What numpy and zipfile raise for files that were cut short, changed, or made to do harm.
_BAD_NPZ = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, SyntaxError,
            MemoryError, NotImplementedError, RuntimeError, TypeError)  # fmt: skip


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Arrays by name; never unpickles. Raises `UserError` where the file is missing, damaged or lacks a name."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"The job folder has no {path.name}.", "Start the job again.") from None
    except _BAD_NPZ:
        raise UserError(f"The file {path.name} in the job folder can't be read.", "Start the job again.") from None
