"""What several operators have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bpy
from bpy.props import BoolProperty, StringProperty

from . import splat_frames, watch
from .jobs import Job
from .shared import protocol
from .timing import Timing


def told(execute: Callable) -> Callable:
    """An operator's execute that tells a `UserError` as one line and is cancelled then."""

    def wrapped(self: bpy.types.Operator, context: bpy.types.Context) -> set[str]:
        try:
            return execute(self, context) or {"FINISHED"}
        except protocol.UserError as error:
            self.report({"ERROR"}, f"{error.message} {error.hint}".strip())
            return {"CANCELLED"}

    return wrapped


class OfJob:
    """An operator on one job of the list."""

    job: StringProperty(name="Job", description="The name of the job's folder", options={"SKIP_SAVE"})

    def find(self) -> Job:
        found = watch.queue().find(self.job)
        if found is None:
            raise protocol.UserError("This job is no longer there.", "It was removed.")
        return found


class IntoFolder:
    """An operator that asks for a folder to write into."""

    directory: StringProperty(
        name="Folder", description="Where the files go", subtype="DIR_PATH", options={"SKIP_SAVE"}
    )

    @property
    def folder(self) -> Path:
        return Path(bpy.path.abspath(self.directory))

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}


class SavesFrames(IntoFolder):
    """An operator that writes a complete .ply file of Gaussians for each frame."""

    play: BoolProperty(
        name="Play Them",
        description="Also add an object that shows the files on the timeline, by Geometry Nodes (Blender 4.5)",
        default=False,
    )

    def finish(self, timing: Timing, obj: bpy.types.Object, name: str, count: int) -> None:
        """Says that `count` files are there, and plays them as an object of this name beside `obj` where asked to."""
        if self.play:
            splat_frames.play(self.folder, timing, obj, f"{name} frames")
        self.report({"INFO"}, f"{count} files are in {self.folder}.")
