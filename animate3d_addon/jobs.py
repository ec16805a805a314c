"""A job of the interface: its folder, its state, and what Blender must know later to apply the result. No bpy in it.

A job lives in its folder alone, so that it survives undo, another file and the end of Blender. States:

    waiting → working → ready → applied          ready: the motion is there and waits to be applied
                      ↘ failed | cancelled       both can be started again, and go on where they stopped
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

from . import job_folder
from .shared import protocol

RECORD = "interface.json"
COPY = "object.blend"  # the object on its own, for the background Blender
CAPTURE = "capture.json"
LOCK = "interface.lock"  # held by the Blender that works on the job
UNFINISHED = ("waiting", "working")
STATES = (*UNFINISHED, "ready", "applied", "failed", "cancelled")


@dataclass(frozen=True)
class Plan:
    """What is animated, and how the result gets onto the timeline."""

    objects: tuple[str, ...]  # names, sorted: the order of the subject
    uids: tuple[int, ...] = ()  # their session numbers, which outlive a new name
    session: str = ""  # the file as it was opened this time: session numbers mean nothing in another
    blend: str = ""  # path of the file, empty where it was never saved
    frame: float = 1.0  # timeline frame at which the objects were looked at
    front: float = 0.0  # degrees from -Y, counterclockwise from above, to where the object looks
    start: int = 1
    step: float = 3.0
    loop: str = "OFF"
    strength: float = 1.0
    output: str = "KEYS"  # KEYS | RIG | POINTS
    points: int = 0  # of a cloud
    places: tuple[tuple[float, ...], ...] = ()  # world matrices of the objects, row by row, when they were looked at
    below: bool = False  # the meshes below the modifiers are animated, which then act on what moves
    take: str = ""  # the group of the take that becomes the output; empty: a new take
    created: float = field(default_factory=time.time)  # seconds since 1970

    @classmethod
    def from_dict(cls, data: dict) -> Plan:
        """Raises `UserError` where the keys are not those of a plan."""
        try:
            plan = cls(**data)
            places = tuple(tuple(map(float, place)) for place in plan.places)
            return replace(plan, objects=tuple(map(str, plan.objects)), uids=tuple(map(int, plan.uids)), places=places)
        except (TypeError, ValueError):
            raise protocol.UserError("The job's record can't be read.", "Remove the job.") from None


@dataclass(frozen=True)
class CaptureTask:
    """`capture.json`: what the background Blender has to know beside the job."""

    objects: tuple[str, ...]  # names in the .blend file, in the order of the subject
    names: tuple[str, ...]  # names in the user's file
    frame: float
    fps: float
    appearance: str
    front: float
    size: int = 0  # pixels of the four views where nothing else is wanted; 0: all that a job needs

    @classmethod
    def load(cls, job: Path) -> CaptureTask:
        return cls(**protocol.read_json(job / CAPTURE))


@dataclass
class Job:
    """One job, as the interface shows it."""

    folder: Path
    settings: protocol.JobSettings
    plan: Plan
    state: str = "waiting"
    error: protocol.UserError | None = None
    notice: str = ""
    stage: str = ""
    step: int = 0
    steps: int = 0
    memory_gb: float = 0.0
    _lock: IO[str] | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def title(self) -> str:
        """What people call it: the sentence."""
        return self.settings.prompt

    @property
    def is_captured(self) -> bool:
        """Whether the object was looked at already, or need not be: at Gaussians, the backend looks."""
        try:
            if protocol.SplatSource.load(self.folder) is not None:
                return True
            protocol.Subject.load(self.folder)
        except protocol.UserError:
            return False
        return True

    @classmethod
    def create(cls, root: Path, settings: protocol.JobSettings, plan: Plan) -> Job:
        """A new job in a folder of its own below `root`. Raises `UserError` where it can't be written."""
        words = re.sub(r"[^a-z0-9]+", "-", settings.prompt.lower()).strip("-")[:40].strip("-")
        stem = time.strftime("%Y%m%d-%H%M%S") + (f"-{words}" if words else "")
        try:
            root.mkdir(parents=True, exist_ok=True)
            job = cls(_new_folder(root, stem), settings, plan)
            job.hold()
            settings.save(job.folder)
            job.save()
        except OSError as error:
            raise protocol.UserError(
                f"The job folder can't be written ({error.strerror}).",
                "Choose another cache folder in the preferences.",
            ) from None
        return job

    @classmethod
    def load(cls, folder: Path) -> Job:
        """A job of an earlier time. Raises `UserError` where the folder holds none."""
        record = protocol.read_json(folder / RECORD)
        plan, state, error = record.get("plan"), record.get("state"), record.get("error")
        if not isinstance(plan, dict) or state not in STATES:
            raise protocol.UserError("The job's record can't be read.", "Remove the job.")
        job = cls(folder, protocol.JobSettings.load(folder), Plan.from_dict(plan), state)
        job.notice = str(record.get("notice", ""))
        if isinstance(error, dict):
            with contextlib.suppress(TypeError, ValueError):
                job.error = protocol.UserError(**error)
        return job

    def save(self) -> None:
        """Writes the record; the folder may have gone meanwhile."""
        error = self.error and {"message": self.error.message, "hint": self.error.hint, "kind": self.error.kind}
        with contextlib.suppress(OSError):
            record = {"state": self.state, "plan": asdict(self.plan), "error": error, "notice": self.notice}
            protocol.write_json(self.folder / RECORD, record)

    def become(self, state: str, error: protocol.UserError | None = None) -> None:
        """Goes over to another state, and notes it down."""
        self.state, self.error = state, error
        if state not in UNFINISHED:
            self.release()
        self.save()

    def hold(self) -> bool:
        """Marks the job as this process's; False where another Blender works on it. Ends with the process."""
        if self._lock is None:
            try:
                file = (self.folder / LOCK).open("w")
            except OSError:
                return False
            try:
                job_folder.lock(file)
            except OSError:
                file.close()
                return False
            self._lock = file
        return True

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def remove(self) -> None:
        """Deletes the folder with all that is in it."""
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def _new_folder(root: Path, stem: str) -> Path:
    for number in range(1, 1000):
        folder = root / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise OSError(0, "too many jobs in one second")


def load_all(root: Path) -> list[Job]:
    """The jobs of earlier times, oldest first; those that another Blender works on are left out.

    A job that was at work when its Blender ended has failed, and says how to go on.
    """
    jobs = []
    for record in sorted(root.glob(f"*/{RECORD}")):
        try:
            job = Job.load(record.parent)
        except protocol.UserError:
            continue  # not ours to judge: a newer version may have written it
        if not job.hold():
            continue
        if job.state in UNFINISHED:
            job.error = protocol.UserError(
                "Blender was closed while this job ran.", "Start it again; it goes on where it stopped.", "cancelled"
            )
            job.state = "cancelled"
            job.save()
        job.release()
        jobs.append(job)
    return jobs


def size_of(root: Path) -> int:
    """Bytes of everything below a folder."""
    total = 0
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
