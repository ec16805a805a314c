"""Starts, feeds, watches and ends the backend process. No bpy in it.

The interface polls it from a timer, batch mode waits for it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .shared import protocol

HELLO_SECONDS = 300.0  # a cold import of torch from a slow disk takes minutes
PATIENCE = 5.0  # seconds from asking to terminating, and from terminating to killing
POLITE = 10  # niceness
SOURCE = Path(__file__).resolve().parent.parent  # the folder that holds `backend`


class BackendDied(protocol.UserError):
    """The process ended without being asked to."""

    def __init__(self, code: int | None, log: Path, who: str = "backend") -> None:
        super().__init__(f"The {who} stopped unexpectedly (exit code {code}).", f"Its log is {log}.", kind="internal")


def find_python(in_blender: bool, chosen: str = "", own: Path | None = None) -> str:
    """The Python that has torch: `ANIMATE3D_PYTHON`, the user's choice, our own, or this one where bpy is a package.

    Args:
        in_blender: this is Blender's own Python, which never has torch.
        chosen: the Python that the user named in the preferences.
        own: the Python of the environment that the add-on has made, if it is complete.

    Raises:
        UserError: none is set up.
    """
    named = os.environ.get("ANIMATE3D_PYTHON", "")
    for python, who in ((named, "ANIMATE3D_PYTHON names"), (chosen, "The preferences name")):
        if python:
            if not Path(python).is_file():
                raise protocol.UserError(f"{who} {python}, which is no file.", "Correct or remove it.")
            return python
    if own is not None:
        return str(own)
    if in_blender:
        raise protocol.UserError(
            "The backend's Python environment is not set up.",
            "Install it in the add-on's preferences, or set the environment variable ANIMATE3D_PYTHON to a Python "
            "that has PyTorch.",
        )
    return sys.executable


def command(python: str) -> list[str]:
    """`-P` keeps the current folder, which may hold anything, out of the backend's imports."""
    return [python, "-P", "-u", "-m", "backend", "serve"]


class BackendProcess:
    """One backend. `start` it, `send` messages, `poll` (or `wait`) for answers, `close` it.

    Nothing here blocks but `wait` and `close`. `poll` and `wait` raise `BackendDied` where the process has gone, and
    carry a `cancel` further: after `PATIENCE` seconds without an answer to terminate, and then to kill.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        polite: bool = False,
        who: str = "backend",
    ) -> None:
        """`environment` is added to ours; a `polite` process leaves the processor to others, a window above all.

        `who` is what it is called where it dies.
        """
        self.log, self._who = Path(log), who
        self.hello: dict | None = None
        self._inbox: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self._running = False
        self._cancelled_at: float | None = None
        self._forced = False  # it was ended because it did not cancel
        self._process = _spawn(arguments, self.log, environment or {}, polite)
        threading.Thread(target=self._read, name="backend stdout", daemon=True).start()

    @classmethod
    def start(cls, python: str, log: Path, environment: Mapping[str, str] | None = None) -> BackendProcess:
        """Starts the backend; `wait_hello` (or the first polled message) says whether it is usable."""
        return cls(command(python), log, environment)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_hello(self, seconds: float = HELLO_SECONDS, stop: Callable[[], None] = lambda: None) -> dict:
        """Waits for the handshake, calling `stop`, which may raise, meanwhile.

        Raises:
            UserError: the backend does not fit, or does not answer.
        """
        deadline = time.monotonic() + seconds
        while self.hello is None:
            stop()
            message = self.wait(0.2)
            if message is None:
                if time.monotonic() < deadline:
                    continue
                self.close()
                raise protocol.UserError("The backend does not answer.", f"Its log is {self.log}.", kind="internal")
            if message["type"] == "error":
                self.close()
                raise to_error(message)
        return self.hello

    def send(self, message: str, /, **content: object) -> None:
        """Sends one message of a type; raises `BackendDied` where nobody is there to read it."""
        self._running = self._running or message == "run"
        try:
            self._process.stdin.write(protocol.encode_message(message, **content).encode("ascii"))
            self._process.stdin.flush()
        except OSError:
            raise self._death() from None

    def cancel(self) -> bool:
        """Asks the running job to end; what it does not do by itself, `poll` and `wait` will. False: none runs."""
        if self._running and self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            self.send("cancel")
        return self._running

    def poll(self) -> list[dict]:
        """All messages that have arrived, without waiting; the last words of a process come before its end."""
        messages = []
        try:
            while (message := self.wait(0.0)) is not None:
                messages.append(message)
        except protocol.UserError:
            if not messages:
                raise
        return messages

    def wait(self, seconds: float) -> dict | None:
        """The next message, or None after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            self._escalate()
            left = deadline - time.monotonic()
            try:
                message = self._inbox.get(timeout=min(max(left, 0.0), 0.1)) if left > 0 else self._inbox.get_nowait()
            except queue.Empty:
                if left <= 0:
                    return None
                continue
            if message is None:
                raise self._death()
            return self._seen(message)

    def close(self) -> None:
        """Ends the process: its stdin ends, and where that is not enough, it is terminated, then killed."""
        with contextlib.suppress(OSError):  # it may have gone already
            self._process.stdin.close()
        for end in (lambda: None, self._process.terminate, self._process.kill):
            end()
            try:
                self._process.wait(PATIENCE)
                return
            except subprocess.TimeoutExpired:
                continue

    def _seen(self, message: dict) -> dict:
        if message["type"] == "hello":
            if message.get("protocol") != protocol.PROTOCOL_VERSION:
                self.close()
                raise protocol.UserError(
                    f"The backend is of another version (protocol {message.get('protocol')}, "
                    f"this add-on speaks {protocol.PROTOCOL_VERSION}).",
                    "Install the add-on and its backend from the same download.",
                )
            self.hello = message
        elif message["type"] in ("done", "error"):
            self._running, self._cancelled_at = False, None
        return message

    def _escalate(self) -> None:
        if self._cancelled_at is None or not self.alive:
            return
        waited = time.monotonic() - self._cancelled_at
        if waited > PATIENCE:
            self._forced = True
            (self._process.kill if waited > 2 * PATIENCE else self._process.terminate)()

    def _read(self) -> None:
        for line in self._process.stdout:
            message = protocol.decode_message(line.decode("utf-8", "replace"))
            if message is not None:
                self._inbox.put(message)
        self._inbox.put(None)

    def _death(self) -> protocol.UserError:
        self._inbox.put(None)  # whoever asks again hears it again
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        if self._forced:
            return protocol.UserError("The job was cancelled.", "Run it again to go on.", kind="cancelled")
        return BackendDied(code, self.log, self._who)


def to_error(message: dict) -> protocol.UserError:
    """An error message as the exception that it tells of."""
    kind = message.get("kind")
    hint = str(message.get("hint", ""))
    if kind == "internal" and message.get("log"):
        hint = f"{hint} The log is {message['log']}.".strip()
    return protocol.UserError(
        str(message.get("message", "The backend failed.")), hint, kind if kind in protocol.ERROR_KINDS else "internal"
    )


def _spawn(arguments: Sequence[str], log: Path, environment: Mapping[str, str], polite: bool) -> subprocess.Popen:
    log.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        # No console window, and a Ctrl-C in ours is ours to answer.
        priority = subprocess.BELOW_NORMAL_PRIORITY_CLASS if polite else 0
        spawn = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP | priority}
    else:
        spawn = {"start_new_session": True}
    with log.open("ab") as errors:  # never a pipe: one that nobody drains fills up and stops the process
        try:
            process = subprocess.Popen(
                list(arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**clean_environment(), **environment},
                cwd=log.parent,
                **spawn,
            )
        except OSError as error:
            reason = error.strerror or error
            raise protocol.UserError(
                f"The backend can't be started: {reason}.", f"Its Python is {arguments[0]}.", kind="internal"
            ) from None
    if polite and sys.platform != "win32":
        with contextlib.suppress(OSError):  # it has gone already
            os.setpriority(os.PRIO_PROCESS, process.pid, POLITE)
    return process


def clean_environment() -> dict[str, str]:
    """Ours without what makes another Python look in Blender's folders, and with the way to `backend`."""
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("PYTHON")}
    return {**environment, "PYTHONPATH": str(SOURCE), "PYTHONUTF8": "1"}
