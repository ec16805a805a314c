"""The one queue of this Blender, and the timer that looks after it: progress, previews, finished motions.

The timer outlives files and undo steps, because what it looks after does. It never waits, and an error in it never
stops it.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from pathlib import Path

import bpy

from . import compat, environment, job_queue, places, previews, results, setup_tasks
from .backend_process import SOURCE, find_python
from .jobs import Job, size_of
from .look import Look
from .preferences import choices
from .shared import protocol

BUSY, PLAYING, IDLE = 0.1, 0.125, 1.0  # seconds between two looks
CLOCK = 0.5  # seconds after which the time that is left is drawn anew

setup: setup_tasks.SetupTask | None = None  # what the preferences do, or did last
look: Look | None = None  # at what the model would see
cache_bytes = -1  # of the cache folder; -1 is not measured yet
_queue: job_queue.JobQueue | None = None
_waiting_to_apply: list[str] = []
_last_redraw = 0.0


def queue() -> job_queue.JobQueue:
    """Made when it is first asked for, with the jobs of earlier sessions."""
    global _queue
    if _queue is None or (not _queue.is_busy and _queue.root != choices().jobs):
        if _queue is not None:
            _queue.close()
        _queue = job_queue.JobQueue(
            choices().jobs,
            backend_python,
            capture_command if bpy.app.binary_path else None,
            places.backend_environment,
            lambda: 60.0 * choices().warm_minutes,
        )
    return _queue


def backend_python() -> str:
    """Raises `UserError` where there is no Python that has the backend's packages."""
    chosen = choices()
    return find_python(bool(bpy.app.binary_path), chosen.python, environment.python_of(places.environment()))


def capture_command(job: Job) -> list[str]:
    """Another Blender without a window, without the user's start-up file and add-ons."""
    scripts = [] if bpy.app.autoexec_fail is False and not _trusts_scripts() else ["--enable-autoexec"]
    script = str(SOURCE / "animate3d_addon" / "capture_child.py")
    return [bpy.app.binary_path, "--background", "--factory-startup", *scripts, "--python", script]


def _trusts_scripts() -> bool:
    """Whether the user lets files run scripts: then drivers work in the copy as they do here."""
    return bpy.context.preferences.filepaths.use_scripts_auto_execute


def show_look(new: Look | None) -> None:
    """Puts a look in the place of the one before."""
    global look
    if look is not None:
        look.close()
    look = new
    start()
    redraw()


def start() -> None:
    """Lets the timer run, if it doesn't."""
    if not bpy.app.timers.is_registered(_tick):
        bpy.app.timers.register(_tick, first_interval=0.01, persistent=True)


def close() -> None:
    """Ends everything that belongs to the queue."""
    global _queue, look
    if bpy.app.timers.is_registered(_tick):
        bpy.app.timers.unregister(_tick)
    if _queue is not None:
        _queue.close()
    _queue = None
    if setup is not None and not setup.is_done:
        setup.cancel()
    if look is not None:
        look.close()
    look = None
    _waiting_to_apply.clear()
    previews.clear()


def work_until_done(job: Job) -> None:
    """Waits for a job that is in the queue, for scripts. Raises the `UserError` of one that failed."""
    while job.state in ("waiting", "working"):
        queue().tick()
        time.sleep(0.02)
    if job.error is not None:
        raise job.error


def _tick() -> float | None:
    try:
        return _look_after()
    except Exception:
        traceback.print_exc()
        return IDLE


def _look_after() -> float | None:
    jobs = queue()
    before = {job.name for job in jobs.jobs if job.state == "working"}
    if jobs.tick():
        redraw()
    for name in before:
        job = jobs.find(name)
        if job is not None and job.state == "ready" and choices().apply_when_done:
            _waiting_to_apply.append(name)
    _apply_waiting()
    if previews.advance() or (jobs.current is not None and time.monotonic() - _last_redraw > CLOCK):
        redraw()
    if setup is not None and setup.poll():
        redraw()
    if look is not None and look.poll():
        redraw()
    others = [task for task in (setup, look) if task is not None and not task.is_done]
    if jobs.is_busy or _waiting_to_apply or others:
        return BUSY
    if previews.is_playing():
        return PLAYING
    return IDLE if jobs.is_warm else None


def _apply_waiting() -> None:
    """Applies what has finished, as one undo step, when the user is not in the middle of something."""
    window = next(iter(bpy.context.window_manager.windows), None)
    if window is None or not _waiting_to_apply or not _is_at_rest(window):
        return
    job = queue().find(_waiting_to_apply.pop(0))
    if job is None or job.state != "ready" or not results.is_of_this_session(job.plan):
        return  # it waits for its button
    with contextlib.suppress(RuntimeError), bpy.context.temp_override(window=window):
        bpy.ops.animate3d.apply_job("EXEC_DEFAULT", True, job=job.name)


def _is_at_rest(window: bpy.types.Window) -> bool:
    active = window.view_layer.objects.active
    in_object_mode = active is None or active.mode == "OBJECT"
    return in_object_mode and not any(compat.has_modal_operators(each) for each in bpy.context.window_manager.windows)


def redraw() -> None:
    """Draws the sidebars, and the preferences, anew."""
    global _last_redraw
    _last_redraw = time.monotonic()
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            for region in area.regions if area.type in ("VIEW_3D", "PREFERENCES") else ():
                if area.type == "PREFERENCES" or region.type == "UI":
                    region.tag_redraw()


def measure_cache(root: Path) -> None:
    """Counts the cache folder's bytes in a thread of its own: there may be many files on a slow disk."""

    def count() -> None:
        global cache_bytes
        cache_bytes = size_of(root)

    threading.Thread(target=count, name="size of the cache").start()


def state() -> protocol.UserError | None:
    """Why nothing can be animated, whatever is selected: no backend. None where it can."""
    try:
        backend_python()
    except protocol.UserError as error:
        return error
    return None


@bpy.app.handlers.persistent
def file_loaded(*_: object) -> None:
    """Objects of the file that was open before are no longer there, jobs still are."""
    results.file_opened()
    _waiting_to_apply.clear()


def register() -> None:
    bpy.app.handlers.load_post.append(file_loaded)


def unregister() -> None:
    bpy.app.handlers.load_post.remove(file_loaded)
    close()
