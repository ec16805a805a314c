"""The panel of an object's takes."""

from __future__ import annotations

from pathlib import Path

import bpy

from . import previews, properties, take_data, take_points, takes, watch
from .shared import protocol
from .ui_parts import Panel, draw_error, draw_lines

OUTPUT_ICONS = {"KEYS": "SHAPEKEY_DATA", "RIG": "ARMATURE_DATA", "POINTS": "POINTCLOUD_DATA"}


class ANIMATE3D_PT_takes(Panel, bpy.types.Panel):
    bl_label = "Takes"
    bl_parent_id = "ANIMATE3D_PT_main"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        obj = take_data.of(context.object)
        return obj is not None and len(obj.animate3d.takes) > 0

    def draw_header(self, context: bpy.types.Context) -> None:
        self.layout.prop(take_data.of(context.object).animate3d, "is_shown", text="")

    def draw(self, context: bpy.types.Context) -> None:
        layout, obj = self.layout, take_data.of(context.object)
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
        column.operator("animate3d.export", text="", icon="EXPORT")
        fault = take_data.fault(obj) or left_behind(obj)
        if fault is not None:
            draw_error(layout, fault)
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


def left_behind(obj: bpy.types.Object) -> protocol.UserError | None:
    """Why the points that are shown don't go where their object goes: it got a modifier or a rig since."""
    take = obj.animate3d.active
    if take is None or take.output != "POINTS":
        return None
    try:
        take_points.check_free(obj, takes.our_modifiers(obj))
    except take_points.Stiff as stiff:
        return protocol.UserError(stiff.message, "Turn the take into shape keys, or switch the modifiers off.")
    return None


class ANIMATE3D_PT_video(Panel, bpy.types.Panel):
    bl_label = "Generated Video"
    bl_parent_id = "ANIMATE3D_PT_takes"
    bl_options = {"DEFAULT_CLOSED"}  # noqa: RUF012

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        obj = take_data.of(context.object)
        return obj is not None and obj.animate3d.active is not None and watch.queue().current is None

    def draw(self, context: bpy.types.Context) -> None:
        layout, take = self.layout, take_data.of(context.object).animate3d.active
        draw_lines(layout.column(align=True), f"“{take.prompt}”, seed {take.seed}", "PLAY")
        number = previews.icon(Path(take.job)) if take.job else 0
        if number:
            previews.play()
            watch.start()
            layout.template_icon(number, scale=9.0)
        else:
            layout.label(text="The job's files are gone", icon="BLANK1")


class ANIMATE3D_UL_takes(bpy.types.UIList):
    def draw_item(self, context, layout, data, item, icon, active_data, active_property, index=0, flt_flag=0) -> None:
        layout.prop(item, "name", text="", emboss=False, icon=OUTPUT_ICONS[item.output])


CLASSES = (ANIMATE3D_PT_takes, ANIMATE3D_PT_video, ANIMATE3D_UL_takes)
