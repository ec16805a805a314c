"""What several panels draw."""

from __future__ import annotations

import bpy

from .shared import protocol

MARGIN, LETTER = 75.0, 6.0  # pixels beside a line's text, and of a letter, where the interface isn't enlarged


class Panel:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Animate3D"
    bl_context = "objectmode"


def draw_error(layout: bpy.types.UILayout, error: protocol.UserError) -> None:
    """What is wrong, and what to do: red where it is no slip of the user's."""
    column = layout.column(align=True)
    column.alert = error.kind != "bad_input"
    draw_lines(column, error.message, "ERROR" if column.alert else "INFO")
    if error.hint:
        draw_lines(column, error.hint, "BLANK1")


def draw_lines(layout: bpy.types.UILayout, text: str, icon: str) -> None:
    """Text over as many lines as it needs: labels of Blender's don't wrap."""
    line, width = "", _letters()
    for word in text.split():
        if line and len(line) + len(word) >= width:
            layout.label(text=line, icon=icon)
            line, icon = "", "BLANK1"
        line = f"{line} {word}".strip()
    layout.label(text=line, icon=icon)


def _letters() -> int:
    """How many fit into a line of the region that is drawn."""
    scale = bpy.context.preferences.system.ui_scale
    region = bpy.context.region
    return max(20, round((region.width / scale - MARGIN) / LETTER)) if region is not None else 60
