"""Every difference between the Blender versions that we support (4.2 to 5.2), and only here.

Differences are found by looking for the new thing, not by comparing version numbers, so that a version which brings a
change back-ported is served too.
"""

from __future__ import annotations

import bpy


def session_uid(datablock: bpy.types.ID) -> int:
    """A number that names a datablock for as long as Blender runs."""
    return datablock.session_uid if hasattr(datablock, "session_uid") else datablock.session_uuid


def shape_key_fcurves(
    shape_keys: bpy.types.Key, action: bpy.types.Action
) -> bpy.types.ActionFCurves | bpy.types.ActionChannelbagFCurves:
    """Assigns `action` to the shape keys and returns the F-curves that move them.

    From 4.4 on an action has a slot per datablock, and from 5.0 on its F-curves are reached through the slot only. A
    slot that the shape keys already use is kept.
    """
    data = shape_keys.animation_data or shape_keys.animation_data_create()
    if not hasattr(action, "slots"):
        data.action = action
        return action.fcurves
    slot = data.action_slot
    handle = slot.handle if slot is not None and data.action is not None else None
    data.action = action
    same = [slot for slot in action.slots if slot.handle == handle]
    data.action_slot = same[0] if same else action.slots.new(id_type="KEY", name=shape_keys.name)
    layer = action.layers[0] if len(action.layers) else action.layers.new("Layer")
    strip = layer.strips[0] if len(layer.strips) else layer.strips.new(type="KEYFRAME")
    return strip.channelbag(data.action_slot, ensure=True).fcurves


def has_slots() -> bool:
    """Whether one action can move several datablocks (4.4 and later)."""
    return "slots" in bpy.types.Action.bl_rna.properties


def node_tree(owner: bpy.types.Material | bpy.types.World) -> bpy.types.NodeTree:
    """The emptied shader nodes of a material or world; from 5.0 on they are always there."""
    if owner.node_tree is None:
        owner.use_nodes = True
    owner.node_tree.nodes.clear()
    return owner.node_tree


def use_png(settings: bpy.types.ImageFormatSettings) -> None:
    """8-bit RGBA PNG files."""
    if hasattr(settings, "media_type"):
        settings.media_type = "IMAGE"
    settings.file_format, settings.color_mode, settings.color_depth = "PNG", "RGBA", "8"


def use_denoiser(scene: bpy.types.Scene) -> bool:
    """Turns on the fast denoiser of Cycles; False where this Blender was built without it (Debian's)."""
    cycles = scene.cycles
    try:
        cycles.denoiser = "OPENIMAGEDENOISE"
    except TypeError:
        return False
    cycles.use_denoising = True
    cycles.denoising_input_passes, cycles.denoising_prefilter = "RGB", "NONE"
    if hasattr(cycles, "denoising_quality"):
        cycles.denoising_quality = "FAST"
    return True
