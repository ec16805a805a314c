"""The operators of the preferences: install the backend, check it, fetch the released model, clear the cache."""

from __future__ import annotations

import bpy

from . import jobs, places, setup_tasks, watch
from .operator_parts import told
from .preferences import choices
from .shared import protocol

LOG = "setup.log"


def _start(kind: str, arguments: list[str]) -> None:
    if watch.setup is not None and not watch.setup.is_done:
        raise protocol.UserError("Something else is being set up.", "Wait for it, or cancel it.")
    watch.setup = setup_tasks.SetupTask.start(kind, arguments, places.home() / LOG, places.backend_environment())
    watch.start()


def _ask_for_network() -> None:
    if not bpy.app.online_access:
        raise protocol.UserError(
            "Blender is not allowed to use the network.", "Turn on Preferences > System > Allow Online Access."
        )


class ANIMATE3D_OT_install(bpy.types.Operator):
    """Make a Python environment with PyTorch for the backend in your user folder; downloads 0.3 GB, with CUDA 3 GB"""

    bl_idname = "animate3d.install"
    bl_label = "Install Backend"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        _ask_for_network()
        _start("install", setup_tasks.install_arguments(places.environment()))


class ANIMATE3D_OT_check(bpy.types.Operator):
    """Look whether everything is in place: one line for each check"""

    bl_idname = "animate3d.check"
    bl_label = "Check"

    @told
    def execute(self, context: bpy.types.Context) -> None:
        _start("check", setup_tasks.check_arguments(watch.backend_python()))


class ANIMATE3D_OT_pull(bpy.types.Operator):
    """Download the released Animate3D model and what it is made of; the licences stand in the dialog"""

    bl_idname = "animate3d.pull"
    bl_label = "Download Model"

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_props_dialog(self, width=520, confirm_text="Accept and Download")

    def draw(self, context: bpy.types.Context) -> None:
        from . import ui_preferences

        ui_preferences.draw_licences(self.layout)

    @told
    def execute(self, context: bpy.types.Context) -> None:
        _ask_for_network()
        _start("pull", setup_tasks.pull_arguments(watch.backend_python()))


class ANIMATE3D_OT_cancel_setup(bpy.types.Operator):
    """Stop this. It goes on where it stopped when it is started again"""

    bl_idname = "animate3d.cancel_setup"
    bl_label = "Cancel"

    def execute(self, context: bpy.types.Context) -> set[str]:
        if watch.setup is not None:
            watch.setup.cancel()
        return {"FINISHED"}


class ANIMATE3D_OT_copy_report(bpy.types.Operator):
    """Copy what the last check or installation said, to send it to somebody who helps"""

    bl_idname = "animate3d.copy_report"
    bl_label = "Copy Report"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return watch.setup is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.window_manager.clipboard = f"Blender {bpy.app.version_string}\n{watch.setup.report}"
        return {"FINISHED"}


class ANIMATE3D_OT_clear_cache(bpy.types.Operator):
    """Delete the files of all jobs that are not at work. Motions that were applied stay"""

    bl_idname = "animate3d.clear_cache"
    bl_label = "Clear"

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, context: bpy.types.Context) -> set[str]:
        queue = watch.queue()
        for job in [job for job in queue.jobs if job.state not in jobs.UNFINISHED]:
            queue.remove(job)
        watch.measure_cache(choices().jobs)
        return {"FINISHED"}


CLASSES = (
    ANIMATE3D_OT_install,
    ANIMATE3D_OT_check,
    ANIMATE3D_OT_pull,
    ANIMATE3D_OT_cancel_setup,
    ANIMATE3D_OT_copy_report,
    ANIMATE3D_OT_clear_cache,
)
