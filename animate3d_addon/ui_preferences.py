"""The add-on's preferences as they look."""

from __future__ import annotations

import bpy


def draw(layout: bpy.types.UILayout, own: bpy.types.AddonPreferences) -> None:
    layout.use_property_split, layout.use_property_decorate = True, False
    column = layout.column()
    column.prop(own, "python")
    column.prop(own, "device")
    column.prop(own, "low_memory")
    column.prop(own, "warm_minutes")
    column = layout.column()
    column.prop(own, "apply_when_done")
    column.prop(own, "weights_folder")
    column.prop(own, "cache")
