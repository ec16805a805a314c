"""A batch job's folder: whose it is, whether an interrupted job in it can go on, and what becomes of it.

No bpy in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .shared import protocol

IDENTITY = "batch.json"  # what was captured: file, object, settings of the capture
LOCK = "batch.lock"


class JobFolder:
    """One job's folder, locked against another batch run while it is open.

    `keep` decides whether a temporary folder stays: it does where somebody may want to go on or to look into it.
    """

    def __init__(self, path: Path, temporary: bool) -> None:
        self.path = path
        self.keep = not temporary

    def start(self, identity: dict) -> bool:
        """Makes the folder ready; True where it holds the complete capture of the very same thing.

        Anything of another job is removed. What the backend made is its own to judge: it knows its settings.
        """
        try:
            before = protocol.read_json(self.path / IDENTITY)
            protocol.Subject.load(self.path)
        except protocol.UserError:
            before = None
        if before == json.loads(json.dumps(identity)):  # as JSON gives it back: tuples have become lists
            return True
        self._clear()
        return False

    def captured(self, identity: dict) -> None:
        """Notes down what the capture in the folder, complete now, is of."""
        protocol.write_json(self.path / IDENTITY, identity)

    def _clear(self) -> None:
        for name in (*protocol.JOB_ENTRIES, IDENTITY):
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """A file's content in 64 characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def opened(keep_job: str) -> Iterator[JobFolder]:
    """The folder `keep_job`, or a temporary one where that is empty.

    Raises:
        UserError: the folder holds something else, can't be written, or another run works in it.
    """
    if keep_job:
        path = Path(keep_job).absolute()
        _refuse_foreign(path)
    else:
        path = Path(tempfile.mkdtemp(prefix="animate3d-job-"))
    folder = JobFolder(path, temporary=not keep_job)
    try:
        with _locked(path):
            yield folder
    finally:
        nothing_done = not keep_job and {entry.name for entry in path.iterdir()} <= {LOCK}
        if nothing_done or not folder.keep:
            shutil.rmtree(path, ignore_errors=True)


def _refuse_foreign(path: Path) -> None:
    """A folder that is neither empty nor a job's is somebody's, and things get removed from job folders."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        entries = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise protocol.UserError(
            f"The job folder {path} can't be used: {error.strerror}.", "Choose another folder."
        ) from None
    if entries and not entries & {"job.json", IDENTITY, LOCK, "subject"}:
        raise protocol.UserError(f"{path} holds other things than a job.", "Choose an empty or a new folder.")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the folder for this process; the system lets go of it when the process ends, however that happens."""
    try:
        file = (path / LOCK).open("w")
    except OSError as error:
        raise protocol.UserError(
            f"The job folder {path} can't be used: {error.strerror}.", "Choose another folder."
        ) from None
    with file:
        try:
            lock(file)
        except OSError:
            raise protocol.UserError(
                f"Another run is at work in {path}.", "Wait for it, or choose another folder."
            ) from None
        yield


def lock(file: IO[str]) -> None:
    """Holds a file for this process; raises `OSError` where another one has it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
