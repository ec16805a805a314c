"""The add-on's preferences as they look."""

from __future__ import annotations

import bpy

from . import models, places, ui, watch
from .preferences import choices
from .setup_tasks import SetupTask
from .shared import protocol
from .ui_parts import draw_lines

SHOWN_LINES = 12


def draw(layout: bpy.types.UILayout, own: bpy.types.AddonPreferences) -> None:
    _draw_backend(layout.box(), own)
    _draw_models(layout.box(), own)
    _draw_work(layout.box(), own)


def _draw_backend(box: bpy.types.UILayout, own: bpy.types.AddonPreferences) -> None:
    try:
        state, icon = f"Backend: {watch.backend_python()}", "CHECKMARK"
    except protocol.UserError as error:
        state, icon = error.message, "ERROR"
    box.label(text=state, icon=icon)
    if not bpy.app.online_access:
        row = box.row()
        row.label(text="Installing needs Preferences > System > Allow Online Access", icon="INTERNET_OFFLINE")
    row = box.row()
    row.operator("animate3d.install", icon="IMPORT")
    row.operator("animate3d.check", icon="CHECKMARK")
    row.operator("animate3d.copy_report", icon="COPYDOWN")
    column = box.column()
    column.use_property_split, column.use_property_decorate = True, False
    column.prop(own, "python")
    if watch.setup is not None:
        _draw_setup(box, watch.setup)


def _draw_setup(layout: bpy.types.UILayout, task: SetupTask) -> None:
    if not task.is_done:
        row = layout.row(align=True)
        words = f"{task.words} …"
        row.progress(factor=(task.step + 0.5) / task.steps if task.steps else 0.1, type="BAR", text=words)
        row.operator("animate3d.cancel_setup", text="", icon="X")
    column = layout.column(align=True)
    for line in list(task.lines)[-SHOWN_LINES:]:
        if line.startswith("BAD"):
            wrong = column.column(align=True)
            wrong.alert = True
            draw_lines(wrong, line.removeprefix("BAD"), "ERROR")  # whole: its end says what mends it
        else:
            icon = "CHECKMARK" if line.startswith("ok ") else "BLANK1"
            column.label(text=line.removeprefix("ok ").strip()[:160], icon=icon)
    if task.error is not None:
        draw_lines(column, f"{task.error.message} {task.error.hint}", "ERROR")
    elif task.is_done:
        column.label(text="Done.", icon="CHECKMARK")


def _draw_models(box: bpy.types.UILayout, own: bpy.types.AddonPreferences) -> None:
    box.label(text="Models", icon="OUTLINER_OB_ARMATURE")
    starter = models.card("starter", places.weights())
    known = f"Starter comes along ({starter.licence}): {', '.join(starter.motions)}"
    draw_lines(box.column(align=True), known, "CHECKMARK")
    if models.is_installed("animate3d", places.weights()):
        box.label(text="Animate3D, the released model, is installed", icon="CHECKMARK")
    else:
        box.operator("animate3d.pull", text=f"Download the Released Model ({_download_gb():.1f} GB)", icon="IMPORT")
    column = box.column()
    column.use_property_split, column.use_property_decorate = True, False
    column.prop(own, "weights_folder")


def _download_gb() -> float:
    return sum(source.size for source in models.released_sources()) / 1e9


def draw_licences(layout: bpy.types.UILayout) -> None:
    """What is about to be downloaded, how large it is, and what its authors allow."""
    for source in models.released_sources():
        column = layout.column(align=True)
        column.label(text=f"{source.repository}, {source.size / 1e9:.1f} GB, {source.licence.name}", icon="FILE")
        for start in range(0, len(source.licence.summary), 90):
            column.label(text=source.licence.summary[start : start + 90], icon="BLANK1")
        column.operator("wm.url_open", text="Read the Licence", icon="URL").url = source.licence.link


def _draw_work(box: bpy.types.UILayout, own: bpy.types.AddonPreferences) -> None:
    column = box.column()
    column.use_property_split, column.use_property_decorate = True, False
    for name in ("device", "memory", "compile", "warm_minutes", "apply_when_done", "cache"):
        column.prop(own, name)
    if watch.cache_bytes < 0:
        watch.cache_bytes = 0
        watch.measure_cache(choices().jobs)
    row = box.row()
    row.label(text=f"Jobs take {watch.cache_bytes / 1e6:.0f} MB in {choices().jobs}", icon="FILE_FOLDER")
    row.operator("animate3d.clear_cache", icon="TRASH")
    found = ui.keymap_item(bpy.context)
    if found is not None:
        row = box.row()
        row.label(text="Shortcut of “Animate Selected Object”")
        row.prop(found[1], "type", text="", full_event=True)
