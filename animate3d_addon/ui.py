"""The panel in the sidebar of the 3D view, the dialog, the menus, the keymap."""

from __future__ import annotations

import bpy

from . import estimate, models, places, previews, prompts, properties, results, takes, watch
from .jobs import Job
from .shared import protocol

STATE_ICONS = {
    "waiting": "SORTTIME",
    "working": "PLAY",
    "ready": "CHECKMARK",
    "applied": "KEYTYPE_KEYFRAME_VEC",
    "failed": "ERROR",
    "cancelled": "CANCEL",
}
OUTPUT_ICONS = {"KEYS": "SHAPEKEY_DATA", "RIG": "ARMATURE_DATA", "POINTS": "POINTCLOUD_DATA"}
MOST_JOBS = 6  # rows in the list of jobs; older ones wait in the folder
WIDTH = 42  # characters of a line of the sidebar at its usual width


class _Panel:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Animate3D"
    bl_context = "objectmode"


class ANIMATE3D_PT_main(_Panel, bpy.types.Panel):
    bl_label = "Animate3D"
    bl_idname = "ANIMATE3D_PT_main"

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.scene.animate3d
        _draw_prompt(layout, settings)
        row = layout.row(align=True)
        row.prop(settings, "preset", expand=True)
        obstacle = _obstacle(context)
        if obstacle is not None:
            _draw_error(layout, obstacle)
            if obstacle.kind in ("internal", "missing_weights"):
                layout.operator("animate3d.open_preferences", icon="PREFERENCES")
            if isinstance(obstacle, results.OtherVertices):
                layout.operator("animate3d.copy_applied", icon="DUPLICATE")
                layout.prop(settings, "below", toggle=True, icon="MESH_DATA", text="Animate the Mesh Below")
        row = layout.row()
        row.scale_y = 1.6
        row.enabled = obstacle is None
        row.operator("animate3d.animate", icon="ARMATURE_DATA", text=_button_text(context))
        current = watch.queue().current
        if current is not None:
            _draw_progress(layout, current)


class ANIMATE3D_PT_motion(_Panel, bpy.types.Panel):
    bl_label = "Motion"
    bl_parent_id = "ANIMATE3D_PT_main"
    bl_options = {"DEFAULT_CLOSED"}  # noqa: RUF012

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.scene.animate3d
        layout.use_property_split, layout.use_property_decorate = True, False
        column = layout.column(align=True)
        column.prop(settings, "start")
        column.prop(settings, "step")
        column.prop(settings, "frames")
        layout.prop(settings, "loop")
        layout.prop(settings, "strength", slider=True)
        row = layout.row(align=True)
        row.prop(settings, "seed")
        row.operator("animate3d.dice", text="", icon="FILE_REFRESH")
        layout.row().prop(settings, "output", expand=True)
        if settings.output == "POINTS":
            layout.prop(settings, "points")
        layout.prop(settings, "below")
        layout.prop(settings, "front")
        layout.prop(settings, "weights")


class ANIMATE3D_PT_takes(_Panel, bpy.types.Panel):
    bl_label = "Takes"
    bl_parent_id = "ANIMATE3D_PT_main"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        obj = takes.of(context.object)
        return obj is not None and len(obj.animate3d.takes) > 0

    def draw_header(self, context: bpy.types.Context) -> None:
        self.layout.prop(takes.of(context.object).animate3d, "is_shown", text="")

    def draw(self, context: bpy.types.Context) -> None:
        layout, obj = self.layout, takes.of(context.object)
        own = obj.animate3d
        row = layout.row()
        row.template_list("ANIMATE3D_UL_takes", "", own, "takes", own, "active_index", rows=3)
        column = row.column(align=True)
        column.operator("animate3d.take_duplicate", text="", icon="DUPLICATE")
        column.operator("animate3d.take_delete", text="", icon="REMOVE")
        column.separator()
        column.operator("animate3d.take_push", text="", icon="NLA_PUSHDOWN")
        column.operator("animate3d.take_to_cache", text="", icon="FILE_CACHE")
        column.operator("animate3d.take_to_copy", text="", icon="OBJECT_DATA")
        fault = takes.fault(obj)
        if fault is not None:
            _draw_error(layout, fault)
        take = own.active
        if take is None:
            return
        row = layout.row(align=True)
        for identifier, label, _ in properties.OUTPUT_ITEMS:
            shown = take.output == identifier
            row.operator("animate3d.take_output", text=label, depress=shown).output = identifier
        layout.use_property_split, layout.use_property_decorate = True, False
        layout.prop(take, "strength", slider=True)
        column = layout.column(align=True)
        column.prop(take, "start")
        column.prop(take, "step")
        column = layout.column(align=True)
        column.prop(take, "first")
        column.prop(take, "last")
        layout.prop(take, "loop")
        if take.output == "POINTS":
            layout.prop(take, "count")
            layout.operator("animate3d.take_save_frames", icon="FILE_TICK")


class ANIMATE3D_UL_takes(bpy.types.UIList):
    def draw_item(self, context, layout, data, item, icon, active_data, active_property, index=0, flt_flag=0) -> None:
        layout.prop(item, "name", text="", emboss=False, icon=OUTPUT_ICONS[item.output])


class ANIMATE3D_PT_jobs(_Panel, bpy.types.Panel):
    bl_label = "Jobs"
    bl_parent_id = "ANIMATE3D_PT_main"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return bool(watch.queue().jobs)

    def draw(self, context: bpy.types.Context) -> None:
        for job in reversed(watch.queue().jobs[-MOST_JOBS:]):
            _draw_job(self.layout, job)


class ANIMATE3D_MT_prompts(bpy.types.Menu):
    """Sentences that were asked for before, and what the model knows"""

    bl_idname = "ANIMATE3D_MT_prompts"
    bl_label = "Prompts"

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        known = properties.examples(context.scene.animate3d, context)
        if known:
            layout.label(text="The model knows")
            for text in known:
                layout.operator("animate3d.use_prompt", text=text, icon="ARMATURE_DATA").prompt = text
            layout.separator()
        layout.label(text="Earlier")
        for text in prompts.history(places.home())[:12]:
            layout.operator("animate3d.use_prompt", text=text, icon="RECOVER_LAST").prompt = text


def draw_dialog(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """The few settings that the right-click dialog asks for."""
    settings = context.scene.animate3d
    _draw_prompt(layout, settings)
    layout.row().prop(settings, "preset", expand=True)
    obstacle = _obstacle(context)
    if obstacle is not None:
        _draw_error(layout, obstacle)


def _draw_prompt(layout: bpy.types.UILayout, settings: properties.Settings) -> None:
    row = layout.row(align=True)
    row.prop(settings, "prompt", text="", placeholder="What moves, and how?")
    row.menu("ANIMATE3D_MT_prompts", text="", icon="DOWNARROW_HLT")


def _obstacle(context: bpy.types.Context) -> protocol.UserError | None:
    """The first thing that keeps the button from working; None where nothing does."""
    error = watch.state()
    if error is not None:
        return protocol.UserError("The backend is not installed yet.", "Install it in the preferences.", "internal")
    settings = context.scene.animate3d
    try:
        results.chosen_objects(context)
        models.card(settings.weights_name(), places.weights())
        protocol.clean_prompt(settings.prompt)
    except protocol.UserError as found:
        return found
    return None


def _button_text(context: bpy.types.Context) -> str:
    names = [obj.name for obj in context.selected_objects]
    return f"Animate “{names[0]}”" if len(names) == 1 else f"Animate {len(names)} Objects" if names else "Animate"


def _draw_progress(layout: bpy.types.UILayout, job: Job) -> None:
    box, expected = layout.box(), watch.queue().estimate
    box.label(text=job.title, icon="PLAY")
    row = box.row(align=True)
    words = f"{estimate.LABELS.get(job.stage, 'Starting')}  {round(100 * expected.share)} %"
    row.progress(factor=expected.share, type="BAR", text=words)
    row.operator("animate3d.cancel", text="", icon="X").job = job.name
    memory = f", {job.memory_gb:.1f} GB" if job.memory_gb else ""
    box.label(text=f"About {estimate.words(expected.seconds_left)} left{memory}", icon="TIME")
    if job.notice:
        _draw_lines(box, job.notice, "INFO")
    _draw_preview(box, job)


def _draw_job(layout: bpy.types.UILayout, job: Job) -> None:
    column = layout.column(align=True)
    row = column.row(align=True)
    row.label(text=job.title, icon=STATE_ICONS[job.state])
    if job.state in ("ready", "applied"):
        if job.state == "ready":
            row.operator("animate3d.apply_job", text="Apply").job = job.name
        else:
            row.operator("animate3d.apply_job", text="", icon="ADD").job = job.name
        again = row.operator("animate3d.apply_job", text="", icon="RESTRICT_SELECT_OFF")
        again.job, again.to_selected = job.name, True
        if (job.folder / "frames").is_dir():
            row.operator("animate3d.save_frames", text="", icon="FILE_TICK").job = job.name
    elif job.state in ("failed", "cancelled"):
        row.operator("animate3d.run_again", text="", icon="FILE_REFRESH").job = job.name
    if job.state in ("waiting", "working"):
        row.operator("animate3d.cancel", text="", icon="X").job = job.name
    else:
        row.operator("animate3d.remove_job", text="", icon="TRASH").job = job.name
    if job.notice and job.state not in ("waiting", "working"):
        _draw_lines(column, job.notice, "INFO")
    if job.state == "failed" and job.error is not None:
        _draw_error(column, job.error)


def _draw_preview(layout: bpy.types.UILayout, job: Job) -> None:
    number = previews.icon(job.folder)
    previews.play(bool(number))
    if number:
        layout.template_icon(number, scale=9.0)


def _draw_error(layout: bpy.types.UILayout, error: protocol.UserError) -> None:
    column = layout.column(align=True)
    column.alert = error.kind != "bad_input"
    _draw_lines(column, error.message, "ERROR" if column.alert else "INFO")
    if error.hint:
        _draw_lines(column, error.hint, "BLANK1")


def _draw_lines(layout: bpy.types.UILayout, text: str, icon: str) -> None:
    """Text over as many lines as it needs: labels of Blender's don't wrap."""
    line = ""
    for word in text.split():
        if line and len(line) + len(word) >= WIDTH:
            layout.label(text=line, icon=icon)
            line, icon = "", "BLANK1"
        line = f"{line} {word}".strip()
    layout.label(text=line, icon=icon)


def _draw_menu_item(self: bpy.types.Menu, context: bpy.types.Context) -> None:
    self.layout.separator()
    self.layout.operator("animate3d.animate_selected", icon="ARMATURE_DATA")


def _draw_import(self: bpy.types.Menu, context: bpy.types.Context) -> None:
    self.layout.operator("animate3d.import_splats", text="Gaussian Splats (.ply)")


CLASSES = (
    ANIMATE3D_PT_main,
    ANIMATE3D_PT_motion,
    ANIMATE3D_PT_takes,
    ANIMATE3D_UL_takes,
    ANIMATE3D_PT_jobs,
    ANIMATE3D_MT_prompts,
)
_keymaps: list[tuple[bpy.types.KeyMap, bpy.types.KeyMapItem]] = []


def register() -> None:
    bpy.types.VIEW3D_MT_object_context_menu.append(_draw_menu_item)
    bpy.types.VIEW3D_MT_object.append(_draw_menu_item)
    bpy.types.TOPBAR_MT_file_import.append(_draw_import)
    configuration = bpy.context.window_manager.keyconfigs.addon
    if configuration is not None:  # there is none without a window
        keymap = configuration.keymaps.new(name="Object Mode", space_type="EMPTY")
        item = keymap.keymap_items.new("animate3d.animate_selected", "A", "PRESS", ctrl=True, shift=True, alt=True)
        _keymaps.append((keymap, item))


def unregister() -> None:
    while _keymaps:
        keymap, item = _keymaps.pop()
        keymap.keymap_items.remove(item)
    bpy.types.TOPBAR_MT_file_import.remove(_draw_import)
    bpy.types.VIEW3D_MT_object.remove(_draw_menu_item)
    bpy.types.VIEW3D_MT_object_context_menu.remove(_draw_menu_item)
