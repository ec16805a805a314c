"""The operators of Gaussian splats: import a file, save and play the frames of a job."""

from __future__ import annotations

from pathlib import Path

import bpy
from bpy.props import EnumProperty, StringProperty

from . import results, splat_output, splats
from .operator_parts import OfJob, SavesFrames, told
from .shared import protocol
from .timing import Timing


class ANIMATE3D_OT_import_splats(bpy.types.Operator):
    """Import a .ply file of Gaussian splats as points that can be animated"""

    bl_idname = "animate3d.import_splats"
    bl_label = "Import Gaussian Splats"
    bl_options = {"UNDO"}  # noqa: RUF012

    filepath: StringProperty(name="File", description="A 3DGS .ply file", subtype="FILE_PATH", options={"SKIP_SAVE"})
    filter_glob: StringProperty(
        name="Filter", description="Files that are listed", default="*.ply", options={"HIDDEN", "SKIP_SAVE"}
    )
    up: EnumProperty(
        name="Up",
        description="Where the top is in the file",
        items=[
            ("y-down", "−Y", "As photogrammetry and the first 3DGS programs write it"),
            ("y", "+Y", "As many viewers and converters write it"),
            ("z", "+Z", "As Blender has it"),
        ],
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    @told
    def execute(self, context: bpy.types.Context) -> None:
        obj = splats.load(Path(bpy.path.abspath(self.filepath)), self.up)
        for other in context.selected_objects:
            other.select_set(other == obj)
        context.view_layer.objects.active = obj


class ANIMATE3D_OT_save_frames(OfJob, SavesFrames, bpy.types.Operator):
    """Save the moving Gaussians as complete .ply files, one for each frame, into a folder, and play them here"""

    bl_idname = "animate3d.save_frames"
    bl_label = "Save Splat Frames"
    bl_options = {"UNDO"}  # noqa: RUF012

    @told
    def execute(self, context: bpy.types.Context) -> None:
        job = self.find()
        if job.state not in ("ready", "applied") or not (job.folder / "frames").is_dir():
            raise protocol.UserError("This job has no frames.", "Only Gaussian splats have them, when they are done.")
        splat_output.export(job.folder, str(self.folder), job.settings.frames, keep=True)
        timing = Timing(job.settings.frames, start=job.plan.start, step=job.plan.step)
        self.finish(timing, results.find_objects(job.plan)[0], job.plan.objects[0], job.settings.frames)


CLASSES = (ANIMATE3D_OT_import_splats, ANIMATE3D_OT_save_frames)
