"""The two ends of a serving process: messages out on what was stdout, messages in from stdin."""

from __future__ import annotations

import os
import queue
import sys
import threading

from backend.protocol import decode_message, encode_message


class Outbox:
    """Writes messages; made first of all, before any library is imported.

    The real stdout is kept for messages alone: descriptor 1 is pointed at stderr, so that whatever a library prints,
    also from C, ends up in the log and never between two messages.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, message: str, /, **content: object) -> None:
        """Sends one message of a type. The process ends where nobody reads any more."""
        data = encode_message(message, **content).encode("ascii")
        try:
            with self._lock:
                while data:
                    data = data[os.write(self._descriptor, data) :]
        except OSError:
            os._exit(0)


class Inbox:
    """Reads messages in a thread, so that a cancel arrives while a job runs.

    `cancelled` is set by a cancel message and cleared by the next run. The end of stdin ends the process at once, in
    the middle of a job too: its starter is gone, and since all results are written whole or not at all, nothing is lost
    but the stage at work.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.cancelled = threading.Event()
        self._outbox = outbox
        self._messages: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self._running = threading.Event()  # from the arrival of a run to `finished`
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def next(self) -> dict:
        """Waits for the next message that is not a cancel."""
        return self._messages.get()

    def finished(self) -> None:
        """To be called before a run is answered: the other side may send the next one at once."""
        self._running.clear()

    def _read(self) -> None:
        rest = b""
        # The raw descriptor: a thread that waits in sys.stdin's buffer would abort the interpreter at its end.
        while chunk := _read_descriptor():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(line.decode("utf-8", "replace").strip())
        os._exit(0)

    def _take(self, line: str) -> None:
        if not line:
            return
        message = decode_message(line)
        kind = message["type"] if message else ""
        if kind == "cancel":
            self.cancelled.set()
        elif kind == "quit":
            os._exit(0)
        elif kind == "run" and self._running.is_set():
            self._refuse(message, "The backend is busy with another job.", "Wait for it, or cancel it.")
        elif kind in ("run", "check", "memory"):
            if kind == "run":
                self.cancelled.clear()
                self._running.set()
            self._messages.put(message)
        else:
            self._refuse(message, "The backend got a line that it does not understand.", "Update both sides.")

    def _refuse(self, message: dict | None, sentence: str, hint: str) -> None:
        job = str((message or {}).get("job", ""))
        self._outbox.send("error", job=job, kind="bad_input", message=sentence, hint=hint, log="")


def _read_descriptor() -> bytes:
    try:
        return os.read(0, 65536)
    except OSError:
        return b""
