"""What the background Blender runs: captures the object of a job, and says how far it is.

    blender --background --factory-startup --python capture_child.py

It speaks the backend's messages on stdin and stdout (`backend/protocol`) and ends when its stdin ends. The object
comes in a .blend file of its own, so that nothing of the user's file is opened, and nothing in it can be changed.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # this Blender is ours alone

import bpy  # noqa: E402

from animate3d_addon import capture, jobs  # noqa: E402
from backend import protocol  # noqa: E402
from backend.channel import Inbox, Outbox  # noqa: E402


class Cancelled(protocol.UserError):
    def __init__(self) -> None:
        super().__init__("Cancelled.", kind="cancelled")


def main() -> None:
    outbox = Outbox()
    inbox = Inbox(outbox)
    outbox.send("hello", protocol=protocol.PROTOCOL_VERSION, pid=os.getpid())
    job = Path(inbox.next()["job"])
    try:
        _capture(job, outbox, inbox)
    except protocol.UserError as error:
        outbox.send("error", job=str(job), kind=error.kind, message=error.message, hint=error.hint, log="")
    except Exception as error:
        traceback.print_exc()  # to the job's log
        outbox.send(
            "error",
            job=str(job),
            kind="internal",
            message=f"The object can't be looked at ({type(error).__name__}).",
            hint="Please report it with the log.",
            log=str(job / "blender.log"),
        )
    else:
        outbox.send("done", job=str(job))
    sys.stderr.flush()
    os._exit(0)


def _capture(job: Path, outbox: Outbox, inbox: Inbox) -> None:
    task = jobs.CaptureTask.load(job)
    objects = load_objects(job / jobs.COPY, task)

    def progress(fraction: float, words: str) -> None:
        outbox.send("progress", job=str(job), stage="capture", step=round(100 * fraction), steps=100)
        if inbox.cancelled.is_set():
            raise Cancelled

    settings = capture.CaptureSettings(appearance=task.appearance, front=task.front)
    if task.size:
        settings = capture.four_views(task.size, task.front)
    capture.capture(objects, job, settings, progress)


def load_objects(blend: Path, task: jobs.CaptureTask) -> list[bpy.types.Object]:
    """The objects of the file in an empty scene, under the names that they have in the user's file."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    with bpy.data.libraries.load(str(blend)) as (_, wanted):
        wanted.objects = list(task.objects)
    objects = [obj for obj in wanted.objects if obj is not None]
    if len(objects) != len(task.objects):
        raise protocol.UserError("The copy of the object can't be read.", "Start the job again.", kind="internal")
    scene = bpy.context.scene
    for obj in objects:
        scene.collection.objects.link(obj)
    scene.render.fps, scene.render.fps_base = max(round(task.fps), 1), max(round(task.fps), 1) / task.fps
    scene.frame_set(int(task.frame // 1), subframe=task.frame % 1.0)
    for obj in bpy.data.objects:
        obj.name = "\N{NO-BREAK SPACE}"  # what came along, parents and targets, may have the names that ours need
    for obj, name in zip(objects, task.names, strict=True):
        obj.name = name
    return objects


if __name__ == "__main__":
    main()
