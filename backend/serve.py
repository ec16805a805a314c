"""The backend process: jobs in on stdin, progress and results out on stdout, until stdin ends."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from backend.channel import Inbox, Outbox
from backend.protocol import PROTOCOL_VERSION, JobSettings, UserError

log = logging.getLogger("backend")

LOG_NAME = "backend.log"
# What a disk, a folder's owner or a user who tidies up may do to a job; other OSErrors are ours.
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EIO)


class Cancelled(UserError):
    """Raised by a progress callback to end the job."""

    def __init__(self) -> None:
        super().__init__("The job was cancelled.", "Run it again to go on where it stopped.", kind="cancelled")


def serve() -> int:
    """Answers messages until stdin ends. Returns the exit code."""
    outbox = Outbox()
    inbox = Inbox(outbox)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.captureWarnings(True)
    try:
        from backend import device, memory  # imports torch

        outbox.send("hello", **_hello(device))
        from backend import jobs  # seconds, in which the other side captures
    except ImportError as error:
        log.exception("import")
        hint = "Install the backend again, or run `python -m backend doctor`."
        outbox.send("error", job="", kind="internal", message=f"The backend is incomplete: {error}.", hint=hint, log="")
        return 1
    server = _Server(outbox, inbox, jobs.Models(), memory.PeakMemory(with_parent=True))
    while True:
        server.answer(inbox.next())


def _hello(device) -> dict:
    chosen = device.pick("auto")
    return {
        "protocol": PROTOCOL_VERSION,
        "device": chosen.type,
        "device_name": device.name(chosen),
        "free_memory_gb": device.free_memory_gb(chosen),
        "versions": device.versions(),
        "pid": os.getpid(),
    }


class _Server:
    def __init__(self, outbox: Outbox, inbox: Inbox, models, peak) -> None:
        self._outbox, self._inbox, self._models, self._peak = outbox, inbox, models, peak

    def answer(self, message: dict) -> None:
        job = Path(str(message.get("job", "")))
        handlers: dict[str, Callable[[], None]] = {
            "memory": lambda: self._outbox.send("memory", peak_gb=self._peak.take()),
            "check": lambda: self._check(message),
            "run": lambda: self._run(job),
        }
        where = job if message["type"] == "run" and job.is_dir() else None
        with logged_to(where) as log_file:
            try:
                handlers[message["type"]]()
            except Exception as error:
                self._inbox.finished()
                self._outbox.send("error", job=str(message.get("job", "")), log=log_file, **describe(error))

    def _check(self, message: dict) -> None:
        from backend import jobs

        settings = JobSettings.from_dict(message.get("settings") or {})
        self._outbox.send("checked", appearance=jobs.check(settings))

    def _run(self, job: Path) -> None:
        from backend import jobs

        name = str(job)

        def progress(stage: str, step: int, steps: int) -> None:
            held = self._peak.now()
            self._outbox.send("progress", job=name, stage=stage, step=step, steps=steps, memory_gb=held)
            if self._inbox.cancelled.is_set():
                raise Cancelled

        def tell(kind: str, /, **content: object) -> None:
            self._outbox.send(kind, job=name, **content)

        report = jobs.run_job(job, progress, self._models, self._peak, tell)
        self._inbox.finished()
        self._outbox.send("done", job=name, report=asdict(report))


def describe(error: Exception) -> dict[str, str]:
    """Kind, sentence and hint of an error message; the traceback goes to the log."""
    from backend import device

    if isinstance(error, UserError):
        log.info("%s: %s %s", error.kind, error.message, error.hint)
        return {"kind": error.kind, "message": error.message, "hint": error.hint}
    log.exception("job failed")
    if device.is_out_of_memory(error):
        hint = "Close other programs, ask for fewer frames, or use another device."
        return {"kind": "out_of_memory", "message": "There is not enough memory for this job.", "hint": hint}
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        reason = error.strerror or type(error).__name__
        message = f"A file of the job could not be read or written: {reason}."
        return {"kind": "bad_input", "message": message, "hint": "Check the disk's free space and the permissions."}
    message = f"The backend failed ({type(error).__name__})."
    return {"kind": "internal", "message": message, "hint": "The log says where; please report it with the job folder."}


@contextmanager
def logged_to(job: Path | None) -> Iterator[str]:
    """Also logs to a file in the job folder; yields the file's place, empty without one."""
    if job is None:
        yield ""
        return
    path = job / LOG_NAME
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError:
        yield ""  # a folder that can't be written; the job will say so itself
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield str(path)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
