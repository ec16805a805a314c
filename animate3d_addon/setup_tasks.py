"""What the preferences do beside Blender: install, check, fetch a model; one at a time. No bpy in it."""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import environment
from .backend_process import SOURCE, BackendProcess, to_error
from .shared import protocol

MOST_LINES = 400


@dataclass
class SetupTask:
    """A task in a child process; `poll` it until `is_done`."""

    kind: str  # install | check | pull
    process: BackendProcess
    words: str = "Starting"
    step: int = 0
    steps: int = 0
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    error: protocol.UserError | None = None
    is_done: bool = False

    @classmethod
    def start(cls, kind: str, arguments: Sequence[str], log: Path, more: dict[str, str] | None = None) -> SetupTask:
        """Runs `environment.py` with arguments, by the Python of this Blender. Raises `UserError`."""
        command = [sys.executable, "-u", str(Path(environment.__file__)), *arguments]
        return cls(kind, BackendProcess(command, log, more, polite=True))

    def poll(self) -> bool:
        """Reads what has arrived; True where something did."""
        if self.is_done:
            return False
        try:
            messages = self.process.poll()
        except protocol.UserError as error:
            self._end(error)
            return True
        for message in messages:
            if message["type"] == "progress":
                self.words, self.step, self.steps = str(message["stage"]), message["step"], message["steps"]
            elif message["type"] == "line":
                self.lines.append(str(message["text"]))
            elif message["type"] == "error":
                self._end(to_error(message))
            elif message["type"] == "done":
                self._end(None)
        return bool(messages)

    def cancel(self) -> None:
        """Ends it; what was downloaded stays in pip's cache."""
        self._end(protocol.UserError("Cancelled.", "It goes on where it stopped.", kind="cancelled"))

    @property
    def report(self) -> str:
        """What to send to somebody who helps."""
        error = f"{self.error.message} {self.error.hint}" if self.error is not None else "no error"
        return "\n".join([f"Animate3D, {platform.platform()}, Python {sys.version.split()[0]}", *self.lines, error])

    def _end(self, error: protocol.UserError | None) -> None:
        self.is_done, self.error = True, error
        threading.Thread(target=self._close, name="end of a task").start()

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.close()


def install_arguments(folder: Path) -> list[str]:
    return ["install", str(folder), str(SOURCE)]


def check_arguments(python: str) -> list[str]:
    return ["run", python, "-P", "-m", "backend", "doctor"]


def pull_arguments(python: str) -> list[str]:
    return ["run", python, "-P", "-m", "backend", "weights", "pull", "animate3d", "--yes"]
