"""What keeps an object from being animated and can be mended by a button."""

from __future__ import annotations

import bpy
from bpy.props import EnumProperty

from . import meshes
from .operator_parts import told
from .shared import protocol

MENDS = {  # of `meshes.Mendable`: the label, the icon, what the tooltip says
    "SELECT": ("Select a Mesh", "RESTRICT_SELECT_OFF", "Select the active object, or the first one with a surface"),
    "CONVERT": ("Convert to Mesh", "MESH_DATA", "Make meshes of the selected curves, texts and metaballs"),
    "REAL": ("Make Instances Real", "OUTLINER_COLLECTION", "Make objects of what the selected collections hold"),
    "LOCAL": ("Make Local", "LINKED", "Make the selected linked objects and their data part of this file"),
}


class ANIMATE3D_OT_mend(bpy.types.Operator):
    """Change what keeps the object from being animated"""

    bl_idname = "animate3d.mend"
    bl_label = "Mend"
    bl_options = {"UNDO", "INTERNAL"}  # noqa: RUF012

    what: EnumProperty(
        name="What", description="What is done", items=[(name, label, tip) for name, (label, _, tip) in MENDS.items()]
    )

    @classmethod
    def description(cls, context: bpy.types.Context, properties: bpy.types.OperatorProperties) -> str:
        return MENDS[properties.what][2]

    @told
    def execute(self, context: bpy.types.Context) -> None:
        {"SELECT": _select, "CONVERT": _convert, "REAL": _make_real, "LOCAL": _make_local}[self.what](context)


def _select(context: bpy.types.Context) -> None:
    active = context.view_layer.objects.active
    found = [obj for obj in (active, *context.view_layer.objects) if obj is not None and obj.type in meshes.MESH_LIKE]
    visible = [obj for obj in found if obj.visible_get()]
    if not visible:
        raise protocol.UserError("There is no object with a surface to select.", "Add a mesh, or show a hidden one.")
    for obj in context.selected_objects:
        obj.select_set(False)
    visible[0].select_set(True)
    context.view_layer.objects.active = visible[0]


def _convert(context: bpy.types.Context) -> None:
    chosen = [obj for obj in context.selected_objects if obj.type in meshes.MESH_LIKE]
    context.view_layer.objects.active = next(obj for obj in chosen if obj.type != "MESH")
    with context.temp_override(selected_objects=chosen, selected_editable_objects=chosen):
        bpy.ops.object.convert(target="MESH")


def _make_real(context: bpy.types.Context) -> None:
    for obj in context.selected_objects:
        if obj.type != "EMPTY":
            obj.select_set(False)
    bpy.ops.object.duplicates_make_real()


def _make_local(context: bpy.types.Context) -> None:
    for obj in context.selected_objects:
        for datablock in (obj, obj.data):
            if datablock is not None and (datablock.library is not None or datablock.override_library is not None):
                datablock.make_local()


CLASSES = (ANIMATE3D_OT_mend,)
