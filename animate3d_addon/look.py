"""The four views that a model would see, rendered small by a background Blender before any long work. No bpy in it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from .backend_process import BackendProcess, to_error
from .jobs import Job
from .shared import protocol

SIZE = 128  # pixels
VIEWS = ("Front", "Right", "Back", "Left")  # of the object, in the order of the condition views


@dataclass
class Look:
    """One look at objects; `poll` it until `is_done`."""

    job: Job  # holds the copy of the objects, and the pictures afterwards
    process: BackendProcess | None
    error: protocol.UserError | None = None
    is_done: bool = False

    @classmethod
    def start(cls, job: Job, command: Sequence[str]) -> Look:
        """Lets a background Blender look at the copy in a job's folder. Raises `UserError`."""
        return cls(job, BackendProcess(command, job.folder / "blender.log", polite=True, who="background Blender"))

    def poll(self) -> bool:
        """Reads what has arrived; True where it is done now."""
        if self.is_done:
            return False
        try:
            for message in self.process.poll():
                if message["type"] == "hello":
                    self.process.send("run", job=str(self.job.folder))
                elif message["type"] == "error":
                    raise to_error(message)
                elif message["type"] == "done":
                    self._end(None)
        except protocol.UserError as error:
            self._end(error)
        return self.is_done

    def close(self) -> None:
        """Ends it, and deletes its pictures."""
        if not self.is_done:
            self._end(protocol.UserError("Cancelled.", kind="cancelled"))
        self.job.remove()

    def _end(self, error: protocol.UserError | None) -> None:
        self.is_done, self.error = True, error
        if self.process is not None:
            threading.Thread(target=self._close, name="end of a look").start()

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.close()
