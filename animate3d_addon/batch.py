"""Batch mode: from files and sentences to files that move, without a window; `animate_batch.py` is its command."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import bpy

from . import environment, files, job_folder, models, places, precheck, splat_output
from .backend_process import BackendProcess, find_python, to_error
from .bake import BakeSettings, bake_shape_keys
from .bake_rig import bake_rig, skinned_by
from .batch_options import Options, UsageError, check_options, check_writable, parser, read_options
from .batch_progress import Progress
from .batch_rows import Result, Worker, run_rows
from .capture import CaptureSettings, capture
from .points import bake_points
from .shared import protocol


class Cancelled(protocol.UserError):
    """The user pressed Ctrl-C."""

    def __init__(self) -> None:
        super().__init__("Cancelled.", kind="cancelled")


def main(arguments: list[str], command: Sequence[str]) -> int:
    """Runs the jobs of a command line. Exit code: 0 all done, 1 some failed, 2 wrong options, 130 Ctrl-C.

    `command` starts a process like this one, for the rows of a table.
    """
    worker, arguments = Worker.split(arguments)
    try:
        jobs, names, report = read_options(arguments)
        if report:
            check_writable(Path(report))
    except UsageError as error:
        print(f"{error}\n{parser().format_usage()}", end="", file=sys.stderr)
        return 2
    except protocol.UserError as error:
        return _fail("", error)
    is_table = names != [""]
    with Interrupt() as interrupt:
        if is_table and worker is None:
            results = run_rows(command, arguments, names, lambda: interrupt.asked)
        else:
            results = _run_here(jobs, names, interrupt, worker)
    if report and worker is None:
        protocol.write_json(Path(report), {"jobs": [each for each, _ in results]} if is_table else results[0][0])
    return 130 if interrupt.asked else max((code for _, code in results), default=0)


def _run_here(
    jobs: Sequence[Options | protocol.UserError], names: Sequence[str], interrupt: Interrupt, worker: Worker | None
) -> list[Result]:
    """The jobs one after the other in this process; a worker's from its first row on, noting down each."""
    first = 0
    if worker is not None:
        first = worker.first
        worker.listen(interrupt.ask)
    results = []
    with Backend() as backend:
        run = Run(backend, interrupt, Progress())
        for row in range(first, len(jobs)):
            results.append(run.one(jobs[row], names[row]))
            if worker is not None:
                worker.done(row, results[-1])
            if interrupt.asked:
                break
    return results


def command_line(arguments: Sequence[str]) -> list[str]:
    """What has started this process, up to the arguments."""
    ours = sys.argv[1 : len(sys.argv) - len(arguments)]
    return [bpy.app.binary_path, *ours] if bpy.app.binary_path else [sys.executable, sys.argv[0], *ours]


def _fail(name: str, error: protocol.UserError) -> int:
    """One line on stderr, whatever the sentences hold."""
    print(" ".join(f"{name}{error.message} {error.hint}".split()), file=sys.stderr, flush=True)
    return 1


class Interrupt:
    """Ctrl-C asks the work to stop where it can go on later; a second one breaks it off."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None is a handler that Blender set in C, which Python can't put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def ask(self) -> None:
        """As Ctrl-C does."""
        self.asked = True

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.ask()

    def check(self) -> None:
        """Raises `Cancelled` where Ctrl-C was pressed."""
        if self.asked:
            raise Cancelled


class Backend:
    """One backend for all jobs; another one where it has died."""

    def __init__(self) -> None:
        self._process: BackendProcess | None = None
        self._logs = Path(tempfile.mkdtemp(prefix="animate3d-log-"))
        self.keep_log = False

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.close()
        if not self.keep_log:
            with contextlib.suppress(OSError):
                (self._logs / "backend.log").unlink(missing_ok=True)
                self._logs.rmdir()

    def start(self) -> BackendProcess:
        """The process, perhaps still starting: `wait_hello` before use. Raises `UserError`."""
        if self._process is None or not self._process.alive:
            own = environment.python_of(places.environment())
            python = find_python(bool(bpy.app.binary_path), own=own)
            self._process = BackendProcess.start(python, self._logs / "backend.log", places.backend_environment())
        return self._process


class Run:
    """What all jobs of one command share."""

    def __init__(self, backend: Backend, interrupt: Interrupt, progress: Progress) -> None:
        self._backend, self._interrupt, self._progress = backend, interrupt, progress
        self._blend = bpy.data.filepath  # before a job opens another file

    def one(self, options: Options | protocol.UserError, name: str) -> tuple[dict, int]:
        """Runs one job to its end, good or bad. Returns its report, and 1 where it failed."""
        started = time.monotonic()
        try:
            if isinstance(options, protocol.UserError):
                raise options
            check_options(options, self._blend)
            if options.weights == "auto":
                options = replace(options, weights=models.default(options.device, places.weights()))
            with job_folder.opened(options.keep_job) as folder:
                report = self._road_or_log(options, folder)
        except protocol.UserError as error:
            self._progress.finish()
            self._backend.keep_log |= error.kind == "internal"
            return {"error": error.kind}, _fail(name, error)
        self._progress.finish()
        self._progress.line(f"{name}{options.output} is done ({time.monotonic() - started:.0f} s).")
        data = asdict(report)
        if options.report:
            protocol.write_json(Path(options.report), data)
        return data, 0

    def _road_or_log(self, options: Options, folder: job_folder.JobFolder) -> protocol.Report:
        """The road; what goes wrong is told in a sentence, and the folder kept where it is of use."""
        try:
            return Road(options, folder, self._backend, self._interrupt, self._progress, self._blend).run()
        except protocol.UserError as error:
            folder.keep |= error.kind in ("internal", "cancelled")
            if error.kind != "cancelled":
                raise
            hint = f"Run it again with --keep-job {folder.path} to go on."
            raise protocol.UserError("The job was cancelled.", hint, kind="cancelled") from None
        except (Exception, KeyboardInterrupt) as error:
            folder.keep = True
            log = folder.path / "blender.log"
            with contextlib.suppress(OSError):
                log.write_text(traceback.format_exc(), encoding="utf-8")
            if isinstance(error, OSError):
                sentence = f"A file could not be read or written ({error.strerror})."
            else:
                sentence = f"Animate3D failed ({type(error).__name__})."
            raise protocol.UserError(sentence, f"The log is {log}.", kind="internal") from error


class Road:
    """One job: load, capture, the backend's stages, bake, export."""

    def __init__(
        self,
        options: Options,
        folder: job_folder.JobFolder,
        backend: Backend,
        interrupt: Interrupt,
        progress: Progress,
        blend: str,
    ) -> None:
        self._options, self._folder, self._interrupt, self._progress = options, folder, interrupt, progress
        self._backend = backend
        self._source = Path(options.input or blend).absolute()
        self._seconds: dict[str, float] = {}
        self._memory: dict[str, float] = {}

    def run(self) -> protocol.Report:
        """Raises `UserError`."""
        return self._run_splats() if precheck.is_splats(self._source) else self._run_meshes()

    def _run_splats(self) -> protocol.Report:
        """Gaussians need no Blender: the backend looks at them and writes their frames."""
        options, job = self._options, self._folder.path
        process = self._backend.start()
        source = protocol.SplatSource(options.up)
        with self._stage("load"):
            if not self._folder.start(self._identity(asdict(source))):
                source.save(job, self._source)
                self._folder.captured(self._identity(asdict(source)))
        self._wait_hello(process)
        options.job_settings().save(job)
        process.send("run", job=str(job))
        report = self._answer(process, "done")["report"]
        with self._stage("export", process):
            splat_output.export(job, options.output, options.frames, keep=bool(options.keep_job))
        return self._complete(report)

    def _run_meshes(self) -> protocol.Report:
        options, job = self._options, self._folder.path
        settings = options.job_settings()
        process = self._backend.start()  # gets ready while we read the file
        with self._stage("load"):
            objects = files.load(self._source, options.object or None)
        self._wait_hello(process)
        process.send("check", settings=asdict(settings))
        appearance = self._answer(process, "checked")["appearance"]
        self._forget_peak(process)
        with self._stage("capture", process):
            subject = self._capture(objects, CaptureSettings(appearance=appearance))
        settings.save(job)
        process.send("run", job=str(job))
        report = self._answer(process, "done")["report"]
        with self._stage("bake", process):
            moving = self._bake(objects, subject)
        with self._stage("export", process):
            files.save(Path(options.output), moving)
        return self._complete(report)

    def _bake(self, objects: list[bpy.types.Object], subject: protocol.Subject) -> list[bpy.types.Object]:
        """What has to be exported: the objects that move, and the armature that moves them."""
        options, job = self._options, self._folder.path
        settings = BakeSettings(start=options.start_frame, step=options.frame_step, apply_modifiers=True)
        if options.as_ == "rig":
            armature = bake_rig(objects, subject, protocol.Rig.load(job), settings)
            return [armature, *skinned_by(armature)]
        if options.as_ == "points":
            return bake_points(objects, subject, protocol.Motion.load(job), settings, options.points)
        baked = bake_shape_keys(objects, subject, protocol.Motion.load(job), settings)
        return [result.object for result in baked]

    def _capture(self, objects: list[bpy.types.Object], settings: CaptureSettings) -> protocol.Subject:
        identity = self._identity(asdict(settings))
        if self._folder.start(identity):
            return protocol.Subject.load(self._folder.path)

        def progress(fraction: float, words: str) -> None:
            self._interrupt.check()
            self._progress.step("capture", round(100 * fraction), 100)

        subject = capture(objects, self._folder.path, settings, progress)
        self._folder.captured(identity)
        return subject

    def _identity(self, capture: dict) -> dict:
        """What the folder's capture is of."""
        return {
            "protocol": protocol.PROTOCOL_VERSION,
            "input": str(self._source),
            "content": job_folder.digest(self._source),
            "object": self._options.object,
            "capture": capture,
        }

    @contextlib.contextmanager
    def _stage(self, name: str, process: BackendProcess | None = None) -> Iterator[None]:
        """Times a stage on our side; the backend, where it is there already, watches the memory of both."""
        self._interrupt.check()
        self._progress.step(name, 0, 1)
        started = time.monotonic()
        yield
        self._seconds[name] = round(time.monotonic() - started, 3)
        self._progress.step(name, 1, 1)
        if process is not None:
            process.send("memory")
            self._memory[name] = self._answer(process, "memory")["peak_gb"]

    def _forget_peak(self, process: BackendProcess) -> None:
        process.send("memory")
        self._answer(process, "memory")

    def _wait_hello(self, process: BackendProcess) -> None:
        if process.hello is None:
            self._progress.step("backend", 0, 1)
            process.wait_hello(stop=self._interrupt.check)

    def _answer(self, process: BackendProcess, kind: str) -> dict:
        """Waits for the answer of a kind, showing what arrives meanwhile. Raises `UserError`."""
        handlers: dict[str, Callable[[dict], None]] = {
            "progress": lambda m: self._progress.step(m["stage"], m["step"], m["steps"]),
            "notice": lambda m: self._progress.line(m["message"]),
        }
        while True:
            if self._interrupt.asked and not process.cancel():
                raise Cancelled
            message = process.wait(0.2)
            if message is None:
                continue
            if message["type"] == "error":
                raise to_error(message)
            if message["type"] == kind:
                return message
            if message["type"] in handlers:
                handlers[message["type"]](message)

    def _complete(self, report: dict) -> protocol.Report:
        """The backend's report with our stages in their places."""
        result = protocol.Report(**report)
        first = ("load", "capture")
        for ours, theirs in ((self._seconds, "seconds"), (self._memory, "peak_memory_gb")):
            before = {name: ours[name] for name in first if name in ours}
            after = {name: value for name, value in ours.items() if name not in first}
            setattr(result, theirs, {**before, **getattr(result, theirs), **after})
        result.versions["blender"] = bpy.app.version_string
        ours = {"as": self._options.as_, "start_frame": self._options.start_frame}
        result.settings.update(ours, frame_step=self._options.frame_step)
        result.save(self._folder.path / "report.json")
        return result
