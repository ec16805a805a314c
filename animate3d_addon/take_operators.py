"""The operators of takes: another output, duplicate, delete, push to the NLA, a copy of the object."""

from __future__ import annotations

from pathlib import Path

import bpy
from bpy.props import EnumProperty, StringProperty

from . import (
    bake_rig,
    files,
    mesh_cache,
    properties,
    results,
    take_data,
    take_edits,
    take_points,
    takes,
    watch,
)
from .jobs import Job
from .operator_parts import IntoFolder, SavesFrames, told
from .operators import apply
from .shared import protocol
from .timing import Timing


class _OfTake:
    """An operator on the active take of the active object."""

    bl_options = {"UNDO"}  # noqa: RUF012

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        obj = take_data.of(context.object)
        if obj is None or obj.mode != "OBJECT" or obj.animate3d.active is None:
            cls.poll_message_set("The active object has no take that is shown")
            return False
        return True


class ANIMATE3D_OT_take_duplicate(_OfTake, bpy.types.Operator):
    """Make another take of the same motion, to time it in another way"""

    bl_idname = "animate3d.take_duplicate"
    bl_label = "Duplicate Take"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        take_edits.duplicate(take_data.of(context.object))


class ANIMATE3D_OT_take_delete(_OfTake, bpy.types.Operator):
    """Delete the shown take, also of the objects that were animated together with this one"""

    bl_idname = "animate3d.take_delete"
    bl_label = "Delete Take"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        takes.delete(take_data.of(context.object))


class ANIMATE3D_OT_take_output(_OfTake, bpy.types.Operator):
    """Let the shown take move the object in this way. The first time, bones take the backend a moment"""

    bl_idname = "animate3d.take_output"
    bl_label = "Output of the Take"

    output: EnumProperty(
        name="Output", description="What moves the object", items=properties.OUTPUT_ITEMS, options={"SKIP_SAVE"}
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """From the interface: where bones have to be made first, a job makes them."""
        return told(type(self)._change_or_enqueue)(self, context)

    @told
    def execute(self, context: bpy.types.Context) -> None:
        """From a script: waits until it is done."""
        if self._needs_job(take_data.of(context.object)):
            job = rig_job(take_data.of(context.object))
            watch.work_until_done(job)
            apply(job)
        else:
            takes.become(take_data.of(context.object), self.output, context.scene.animate3d.points)

    def _change_or_enqueue(self, context: bpy.types.Context) -> set[str] | None:
        if not self._needs_job(take_data.of(context.object)):
            takes.become(take_data.of(context.object), self.output, context.scene.animate3d.points)
            return None
        watch.backend_python()
        rig_job(take_data.of(context.object))
        watch.start()
        watch.redraw()
        return {"CANCELLED"}  # nothing in the file has changed: no undo step

    def _needs_job(self, obj: bpy.types.Object) -> bool:
        return self.output == "RIG" and obj.animate3d.active.rig is None


def rig_job(obj: bpy.types.Object) -> Job:
    """Queues the job of an object's active take again, which has only the bones to do. Raises `UserError`."""
    job = watch.queue().find(Path(obj.animate3d.active.job).name)
    if job is None or not job.is_captured:
        raise protocol.UserError("The files of this take's job are gone.", "Animate again with “Rig” as the output.")
    if job.state in ("waiting", "working"):
        raise protocol.UserError("The job of this take is at work.", "Wait until it is done.")
    for each in take_data.together(obj):
        bake_rig.check_free(each)
    results.plan_rig(job, obj)
    watch.queue().add(job)
    return job


class ANIMATE3D_OT_take_push(_OfTake, bpy.types.Operator):
    """Put the shown take onto an NLA track of its own, as plain shape keys or a plain armature"""

    bl_idname = "animate3d.take_push"
    bl_label = "Push to NLA"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        take_edits.push_to_nla(take_data.of(context.object))


class ANIMATE3D_OT_take_to_cache(_OfTake, IntoFolder, bpy.types.Operator):
    """Put the shown take into a .pc2 file that a Mesh Cache modifier plays: for very heavy meshes, instead of keys"""

    bl_idname = "animate3d.take_to_cache"
    bl_label = "Move to Mesh Cache"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        files = mesh_cache.push(take_data.of(context.object), self.folder)
        self.report({"INFO"}, f"Written: {', '.join(path.name for path in files)}.")


class ANIMATE3D_OT_take_save_frames(_OfTake, SavesFrames, bpy.types.Operator):
    """Save the shown cloud of points as complete 3DGS .ply files, one for each frame, turned Gaussians included"""

    bl_idname = "animate3d.take_save_frames"
    bl_label = "Save Point Frames"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        obj = take_data.of(context.object)
        take = obj.animate3d.active
        if take.output != "POINTS":
            raise protocol.UserError("The shown take is no cloud of points.", "Choose “Points” as its output.")
        count = len(take_points.save_frames(obj, take, take_data.offsets(take, obj), self.folder))
        loop = "OFF" if take.loop == "OFF" else "CYCLE"  # the files are a whole round, whatever its kind
        self.finish(Timing(count, start=take.start, step=take.step, loop=loop), obj, obj.name, count)


class ANIMATE3D_OT_take_to_copy(_OfTake, bpy.types.Operator):
    """Make a copy of the object that moves like the shown take"""

    bl_idname = "animate3d.take_to_copy"
    bl_label = "Copy Object with Take"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        copies = take_edits.to_copy(take_data.of(context.object))
        for obj in context.selected_objects:
            obj.select_set(False)
        for obj in copies:
            obj.select_set(True)
        context.view_layer.objects.active = copies[0]


class ANIMATE3D_OT_export(_OfTake, bpy.types.Operator):
    """Save the object with the motion that is shown, and what moves it, as a file for other programs"""

    bl_idname = "animate3d.export"
    bl_label = "Export Moving Object"
    bl_options = set()  # noqa: RUF012

    filepath: StringProperty(
        name="File", description="Its ending says which kind", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )
    filter_glob: StringProperty(
        name="Filter",
        description="Files that are listed",
        default="*.glb;*.fbx;*.usdc;*.abc",
        options={"HIDDEN", "SKIP_SAVE"},
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        self.filepath = f"{bpy.path.clean_name(take_data.of(context.object).name)}.glb"
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    @told
    def execute(self, context: bpy.types.Context) -> None:
        path = Path(bpy.path.abspath(self.filepath))
        files.save(path, take_data.parts(take_data.of(context.object)))
        self.report({"INFO"}, f"{path} is written.")


CLASSES = (
    ANIMATE3D_OT_export,
    ANIMATE3D_OT_take_duplicate,
    ANIMATE3D_OT_take_delete,
    ANIMATE3D_OT_take_output,
    ANIMATE3D_OT_take_push,
    ANIMATE3D_OT_take_to_cache,
    ANIMATE3D_OT_take_save_frames,
    ANIMATE3D_OT_take_to_copy,
)
