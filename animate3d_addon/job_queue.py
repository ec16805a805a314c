"""The interface's jobs, one after the other: watched by a timer, and never waited for. No bpy in it.

A job that was not captured yet is captured by a background Blender, a child that speaks the backend's messages and ends
when its stdin ends; the backend starts meanwhile. Both end with this process, however it ends.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from .backend_process import BackendProcess, command, to_error
from .estimate import Estimate
from .jobs import Job, load_all
from .shared import protocol

CAPTURE_LOG = "blender.log"
BACKEND_LOG = "backend.log"
TIMES = "seconds.json"


class JobQueue:
    """All jobs of the cache folder, and the processes that work on the first of those that wait.

    Call `tick` ten times a second while `is_busy`, and once a second while `is_warm`.

    Args:
        root: the cache folder.
        python: finds the backend's Python; raises `UserError` where there is none.
        capture_command: the command line of the background Blender for a job, or None where there is no Blender to
            start; then only captured jobs may be added.
        environment: more environment variables for the backend.
        warm_seconds: how long an idle backend keeps its weights in memory.
    """

    def __init__(
        self,
        root: Path,
        python: Callable[[], str],
        capture_command: Callable[[Job], Sequence[str]] | None,
        environment: Callable[[], dict[str, str]] = dict,
        warm_seconds: Callable[[], float] = lambda: 600.0,
    ) -> None:
        self.root = root
        self.jobs: list[Job] = load_all(root) if root.is_dir() else []
        self.current: Job | None = None
        self.estimate: Estimate | None = None
        self._python, self._capture_command = python, capture_command
        self._environment, self._warm_seconds = environment, warm_seconds
        self._environment_used: dict[str, str] = {}
        self._backend: BackendProcess | None = None
        self._capture: BackendProcess | None = None
        self._step: Callable[[], None] = self._nothing
        self._idle_since = time.monotonic()

    @property
    def is_busy(self) -> bool:
        return self.current is not None or any(job.state == "waiting" for job in self.jobs)

    @property
    def is_warm(self) -> bool:
        """Whether a backend is there, at work or waiting for work."""
        return self._backend is not None

    @property
    def hello(self) -> dict | None:
        """What the backend says of its machine: device, device_name, free_memory_gb, versions."""
        return self._backend.hello if self._backend is not None else None

    def add(self, job: Job) -> None:
        """Queues a new job, or one that failed, again. Raises `UserError` where another Blender works on it."""
        if not job.hold():
            raise protocol.UserError("Another Blender works on this job.", "Wait until it is done.")
        job.stage, job.step, job.steps, job.notice = "", 0, 0, ""
        job.become("waiting")
        if job not in self.jobs:
            self.jobs.append(job)

    def find(self, name: str) -> Job | None:
        return next((job for job in self.jobs if job.name == name), None)

    def cancel(self, job: Job) -> None:
        """Ends a job that waits or works; what it has done so far stays in its folder."""
        if job is self.current:
            self._end_capture()
            with contextlib.suppress(protocol.UserError):
                if self._backend is not None and self._backend.cancel():
                    self._step = self._cancelling
                    return
            self._finish("cancelled", _cancelled())
        elif job.state == "waiting":
            job.become("cancelled", _cancelled())

    def remove(self, job: Job) -> None:
        """Deletes a job that is not at work, with its folder."""
        if job is not self.current:
            self.jobs.remove(job)
            job.remove()

    def tick(self) -> bool:
        """Carries things a little further, without waiting. True where something changed."""
        before = self._look()
        if self.current is None:
            self._begin_next()
        else:
            try:
                self._step()
            except protocol.UserError as error:
                self._fail(error)
        if self.current is not None:
            self._idle_since = time.monotonic()
        elif self._backend is not None and time.monotonic() - self._idle_since > self._warm_seconds():
            self.cool()
        return self._look() != before

    def cool(self) -> None:
        """Ends the backend, and frees its memory, without waiting for it."""
        if self._backend is not None:
            _close_later(self._backend)
            self._backend = None

    def close(self) -> None:
        """Ends everything; jobs at work can go on another time."""
        for job in self.jobs:
            if job.state in ("waiting", "working"):
                stopped = protocol.UserError(
                    "The add-on was switched off.", "Start the job again to go on.", "cancelled"
                )
                job.become("cancelled", stopped)
        self.current, self._step = None, self._nothing
        self._end_capture()
        self.cool()

    def _look(self) -> tuple:
        job = self.current
        seen = (job.name, job.stage, job.step, job.memory_gb, job.notice) if job is not None else ()
        return (*seen, *(each.state for each in self.jobs), self.hello is None)

    def _begin_next(self) -> None:
        job = next((job for job in self.jobs if job.state == "waiting"), None)
        if job is None:
            return
        self.current = job
        job.become("working")
        settings = job.settings
        kind = f"{settings.weights} {settings.preset} {settings.device}{' rig' if settings.rig else ''}"
        self.estimate = Estimate(self.root / TIMES, kind)
        try:
            self._start_backend(job)
            if not job.is_captured:
                self._start_capture(job)
            self._step = self._prepare
            self._checked = False
        except protocol.UserError as error:
            self._fail(error)

    def _start_backend(self, job: Job) -> None:
        wanted = self._environment()
        if self._backend is not None and (not self._backend.alive or wanted != self._environment_used):
            self.cool()
        if self._backend is None:
            self._environment_used = wanted
            self._backend = BackendProcess(command(self._python()), self.root / BACKEND_LOG, wanted, polite=True)
        if self._backend.hello is not None:
            self._backend.send("check", settings=asdict(job.settings))

    def _start_capture(self, job: Job) -> None:
        if self._capture_command is None:
            raise protocol.UserError("The job's captured object has gone.", "Remove the job, and start a new one.")
        log = job.folder / CAPTURE_LOG
        self._capture = BackendProcess(self._capture_command(job), log, polite=True, who="background Blender")
        self._progress("capture", 0, 1)

    def _prepare(self) -> None:
        """Until the object is captured and the backend has agreed to the settings."""
        job = self.current
        for message in self._backend.poll():
            if message["type"] == "hello":
                self._backend.send("check", settings=asdict(job.settings))
            elif message["type"] == "checked":
                self._checked = True
            elif message["type"] == "error":
                raise to_error(message)
        if self._capture is not None:
            self._watch_capture(job)
        elif not self._checked:
            self._progress("backend", 0, 1)
        else:
            self._backend.send("run", job=str(job.folder))
            self._step = self._run

    def _watch_capture(self, job: Job) -> None:
        for message in self._capture.poll():
            if message["type"] == "hello":
                self._capture.send("run", job=str(job.folder))
            elif message["type"] == "progress":
                self._progress("capture", message["step"], message["steps"])
            elif message["type"] == "error":
                raise to_error(message)
            elif message["type"] == "done":
                self._end_capture()
                return

    def _run(self) -> None:
        """Until the backend is done."""
        for message in self._backend.poll():
            if message["type"] == "progress":
                self._progress(message["stage"], message["step"], message["steps"])
                self.current.memory_gb = float(message.get("memory_gb", self.current.memory_gb))
            elif message["type"] == "notice":
                said = str(message["message"])
                if said not in self.current.notice:
                    self.current.notice = f"{self.current.notice} {said}".strip()
            elif message["type"] == "error":
                raise to_error(message)
            elif message["type"] == "done":
                self.estimate.finish()
                self._finish("ready")
                return

    def _cancelling(self) -> None:
        """Until the backend has answered to a cancel, or has been ended because it did not."""
        for message in self._backend.poll():
            if message["type"] in ("error", "done"):
                self._finish("cancelled", _cancelled())
                return

    def _nothing(self) -> None:
        pass

    def _progress(self, stage: str, step: int, steps: int) -> None:
        job = self.current
        job.stage, job.step, job.steps = stage, int(step), int(steps)
        self.estimate.step(stage, job.step, job.steps)

    def _fail(self, error: protocol.UserError) -> None:
        self._end_capture()
        if self._backend is not None and (not self._backend.alive or self._backend.hello is None):
            self.cool()
        self._finish("cancelled" if error.kind == "cancelled" else "failed", error)

    def _finish(self, state: str, error: protocol.UserError | None = None) -> None:
        job, self.current, self._step = self.current, None, self._nothing
        job.become(state, error)

    def _end_capture(self) -> None:
        if self._capture is not None:
            _close_later(self._capture)
            self._capture = None


def _cancelled() -> protocol.UserError:
    return protocol.UserError("Cancelled.", "Start it again to go on where it stopped.", kind="cancelled")


def _close_later(process: BackendProcess) -> None:
    """Ends a process in a thread of its own: a stubborn one takes seconds."""
    threading.Thread(target=process.close, name="end of a process").start()
