"""The panel in the sidebar of the 3D view, the dialog, the menus, the keymap."""

from __future__ import annotations

import bpy

from . import estimate, look, mends, meshes, models, places, previews, prompts, properties, results, take_points, watch
from .jobs import Job
from .shared import protocol
from .ui_parts import Panel, draw_error, draw_lines

STATE_ICONS = {
    "waiting": "SORTTIME",
    "working": "PLAY",
    "ready": "CHECKMARK",
    "applied": "KEYTYPE_KEYFRAME_VEC",
    "failed": "ERROR",
    "cancelled": "CANCEL",
}
KEYMAP = "Object Mode"
MOST_PROMPTS = 12  # of the earlier ones in the menu
MOST_JOBS = 6  # rows in the list of jobs; older ones wait in the folder


class ANIMATE3D_PT_main(Panel, bpy.types.Panel):
    bl_label = "Animate3D"
    bl_idname = "ANIMATE3D_PT_main"

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.scene.animate3d
        _draw_prompt(layout, settings)
        row = layout.row(align=True)
        row.prop(settings, "preset", expand=True)
        _draw_front(layout, settings)
        obstacle = _obstacle(context)
        if obstacle is not None:
            draw_error(layout, obstacle)
            _draw_mend(layout, obstacle, settings)
        row = layout.row()
        row.scale_y = 1.6
        row.enabled = obstacle is None
        row.operator("animate3d.animate", icon="ARMATURE_DATA", text=_button_text(context))
        current = watch.queue().current
        if current is not None:
            _draw_progress(layout, current)


class ANIMATE3D_PT_motion(Panel, bpy.types.Panel):
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
        row = layout.row(align=True)
        row.use_property_split = False
        row.prop(settings, "output", expand=True)
        if settings.output == "POINTS":
            layout.prop(settings, "points")
        layout.prop(settings, "below")
        layout.prop(settings, "weights")


class ANIMATE3D_PT_jobs(Panel, bpy.types.Panel):
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
        known = properties.examples(context.scene.animate3d, context)
        earlier = prompts.history(places.home())[:MOST_PROMPTS]
        row = self.layout.row()
        for title, texts, icon in (
            ("The model knows", known[::2], "ARMATURE_DATA"),
            ("", known[1::2], "ARMATURE_DATA"),
            ("Earlier", earlier, "RECOVER_LAST"),
        ):
            if texts:
                column = row.column()
                column.label(text=title)
                for text in texts:
                    column.operator("animate3d.use_prompt", text=text, icon=icon).prompt = text


def draw_dialog(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """The few settings that the right-click dialog asks for."""
    settings = context.scene.animate3d
    _draw_prompt(layout, settings)
    layout.row().prop(settings, "preset", expand=True)
    obstacle = _obstacle(context)
    if obstacle is not None:
        draw_error(layout, obstacle)


def _draw_prompt(layout: bpy.types.UILayout, settings: properties.Settings) -> None:
    row = layout.row(align=True)
    row.prop(settings, "prompt", text="", placeholder="What moves, and how?")
    row.menu("ANIMATE3D_MT_prompts", text="", icon="DOWNARROW_HLT")
    notice = properties.notice(settings)
    if notice:
        draw_lines(layout.column(align=True), notice, "INFO")


def _draw_front(layout: bpy.types.UILayout, settings: properties.Settings) -> None:
    """What the front is, and what the model sees there: the four views."""
    row = layout.row(align=True)
    row.label(text="Front")
    row.prop(settings, "front", expand=True)
    row.operator("animate3d.look", text="", icon="HIDE_OFF")
    seen = watch.look
    if seen is None:
        return
    box = layout.box()
    row = box.row()
    if seen.error is not None:
        draw_error(row, seen.error)
    else:
        names = ", ".join(seen.job.plan.objects[:2])
        stale = seen.job.plan.front != properties.front_degrees(settings)
        row.label(text="Looking …" if not seen.is_done else "Another front: look again" if stale else names)
    row.operator("animate3d.close_look", text="", icon="X", emboss=False)
    if seen.is_done and seen.error is None:
        _draw_views(box, previews.views(seen.job.folder))


def _draw_views(layout: bpy.types.UILayout, icons: list[int]) -> None:
    """The four views, named."""
    grid = layout.grid_flow(columns=2, even_columns=True, row_major=True)
    for name, icon in zip(look.VIEWS, icons, strict=False):
        column = grid.column(align=True)
        column.template_icon(icon, scale=4.5)
        column.label(text=name)


def _draw_mend(layout: bpy.types.UILayout, obstacle: protocol.UserError, settings: properties.Settings) -> None:
    """The button that mends it."""
    if obstacle.kind in ("internal", "missing_weights"):
        layout.operator("animate3d.open_preferences", icon="PREFERENCES")
    if obstacle.kind == "missing_weights" and settings.weights != "starter":
        layout.prop_enum(settings, "weights", "starter", text="Use the Starter Model")
    if isinstance(obstacle, meshes.Mendable):
        label, icon, _ = mends.MENDS[obstacle.mend]
        layout.operator("animate3d.mend", text=label, icon=icon).what = obstacle.mend
    if isinstance(obstacle, results.OtherVertices | take_points.Stiff):
        layout.operator("animate3d.copy_applied", icon="DUPLICATE")
    if isinstance(obstacle, take_points.Stiff):
        layout.prop_enum(settings, "output", "KEYS", text="Make Shape Keys")
    if isinstance(obstacle, results.OtherVertices):
        layout.prop(settings, "below", toggle=True, icon="MESH_DATA", text="Animate the Mesh Below")


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
        draw_lines(box, job.notice, "INFO")
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
        draw_lines(column, job.notice, "INFO")
    if job.state == "failed" and job.error is not None:
        draw_error(column, job.error)


def _draw_preview(layout: bpy.types.UILayout, job: Job) -> None:
    number = previews.icon(job.folder)
    if number:
        previews.play()
        layout.template_icon(number, scale=9.0)
    elif job.stage not in ("", "capture"):
        _draw_views(layout, previews.views(job.folder))


def _draw_menu_item(self: bpy.types.Menu, context: bpy.types.Context) -> None:
    self.layout.separator()
    self.layout.operator_context = "INVOKE_DEFAULT"  # menus leave another one behind, which would not ask
    self.layout.operator("animate3d.animate_selected", icon="ARMATURE_DATA")


def _draw_import(self: bpy.types.Menu, context: bpy.types.Context) -> None:
    self.layout.operator("animate3d.import_splats", text="Gaussian Splats (.ply)")


CLASSES = (
    ANIMATE3D_PT_main,
    ANIMATE3D_PT_motion,
    ANIMATE3D_PT_jobs,
    ANIMATE3D_MT_prompts,
)
_keymaps: list[tuple[bpy.types.KeyMap, bpy.types.KeyMapItem]] = []


def keymap_item(context: bpy.types.Context) -> tuple[bpy.types.KeyMap, bpy.types.KeyMapItem] | None:
    """The shortcut as the user has it; None without a window."""
    configuration = context.window_manager.keyconfigs.user
    if configuration is None or not _keymaps:
        return None
    keymap = configuration.keymaps.get(KEYMAP)
    item = keymap and keymap.keymap_items.find_from_operator("animate3d.animate_selected")
    return (keymap, item) if item else None


def register() -> None:
    bpy.types.VIEW3D_MT_object_context_menu.append(_draw_menu_item)
    bpy.types.VIEW3D_MT_object.append(_draw_menu_item)
    bpy.types.TOPBAR_MT_file_import.append(_draw_import)
    configuration = bpy.context.window_manager.keyconfigs.addon
    if configuration is not None:  # there is none without a window
        keymap = configuration.keymaps.new(name=KEYMAP, space_type="EMPTY")
        item = keymap.keymap_items.new("animate3d.animate_selected", "A", "PRESS", ctrl=True, shift=True, alt=True)
        _keymaps.append((keymap, item))


def unregister() -> None:
    while _keymaps:
        keymap, item = _keymaps.pop()
        keymap.keymap_items.remove(item)
    bpy.types.TOPBAR_MT_file_import.remove(_draw_import)
    bpy.types.VIEW3D_MT_object.remove(_draw_menu_item)
    bpy.types.VIEW3D_MT_object_context_menu.remove(_draw_menu_item)
