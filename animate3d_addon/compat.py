"""Every difference between the Blender versions that we support (4.2 to 5.2), and only here.

Differences are found by looking for the new thing, not by comparing version numbers, so that a version which brings a
change back-ported is served too.
"""

from __future__ import annotations

import math
from collections.abc import Collection

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
    return _fcurves(shape_keys, action)


def object_fcurves(
    obj: bpy.types.Object, action: bpy.types.Action
) -> bpy.types.ActionFCurves | bpy.types.ActionChannelbagFCurves:
    """The same for what moves an object or the bones of its pose."""
    return _fcurves(obj, action)


def _fcurves(
    datablock: bpy.types.ID, action: bpy.types.Action
) -> bpy.types.ActionFCurves | bpy.types.ActionChannelbagFCurves:
    data = datablock.animation_data or datablock.animation_data_create()
    if not hasattr(action, "slots"):
        data.action = action
        return action.fcurves
    slot = data.action_slot
    handle = slot.handle if slot is not None and data.action is not None else None
    data.action = action
    same = [slot for slot in action.slots if slot.handle == handle]
    data.action_slot = same[0] if same else action.slots.new(id_type=datablock.id_type, name=datablock.name)
    layer = action.layers[0] if len(action.layers) else action.layers.new("Layer")
    strip = layer.strips[0] if len(layer.strips) else layer.strips.new(type="KEYFRAME")
    return strip.channelbag(data.action_slot, ensure=True).fcurves


def moves_others(shape_keys: bpy.types.Key) -> bool:
    """Whether the F-curves that move the shape keys move something else as well."""
    data = shape_keys.animation_data
    if not has_slots():
        return data.action.users - data.action.use_fake_user > 1
    return data.action_slot is not None and len(data.action_slot.users()) > 1


def remove_fcurves(shape_keys: bpy.types.Key, paths: Collection[str]) -> None:
    """Removes the F-curves of these data paths; an action that is empty then is let go of."""
    data = shape_keys.animation_data
    if data is None or data.action is None:
        return
    fcurves = shape_key_fcurves(shape_keys, data.action)
    for fcurve in [fcurve for fcurve in fcurves if fcurve.data_path in paths]:
        fcurves.remove(fcurve)
    if len(fcurves) == 0:
        action, data.action = data.action, None
        if action.users == 0:
            bpy.data.actions.remove(action)


def push_down(
    datablock: bpy.types.Key | bpy.types.Object, action: bpy.types.Action, name: str, start: float
) -> bpy.types.NlaTrack:
    """Puts the action that moves shape keys or an object, and its slot, onto an NLA track of its own."""
    data = datablock.animation_data
    slot = data.action_slot if has_slots() else None
    track = data.nla_tracks.new()
    track.name = name
    strip = track.strips.new(name, math.floor(start), action)
    if slot is not None:
        strip.action_slot = slot
    strip.extrapolation = "HOLD"
    return track


def slot_of(shape_keys: bpy.types.Key) -> bpy.types.ActionSlot | None:
    """The slot through which the action moves the shape keys; None before 4.4."""
    return shape_keys.animation_data.action_slot if has_slots() and shape_keys.animation_data else None


def assign(shape_keys: bpy.types.Key, action: bpy.types.Action | None, slot: bpy.types.ActionSlot | None) -> None:
    """Lets an action, through its slot, move the shape keys."""
    shape_keys.animation_data.action = action
    if slot is not None and action is not None:
        shape_keys.animation_data.action_slot = slot


def own_action(datablock: bpy.types.Key | bpy.types.Object | None) -> None:
    """Gives shape keys or an object a copy of their action, so that what is changed in it changes nothing else."""
    data = datablock.animation_data if datablock is not None else None
    if data is not None and data.action is not None:
        handle = data.action_slot.handle if has_slots() and data.action_slot is not None else None
        data.action = data.action.copy()
        if handle is not None:
            data.action_slot = next(slot for slot in data.action.slots if slot.handle == handle)


def has_modal_operators(window: bpy.types.Window) -> bool:
    """Whether the user is in the middle of something, moving an object for example; False where nobody can tell."""
    return len(getattr(window, "modal_operators", ())) > 0


def has_slots() -> bool:
    """Whether one action can move several datablocks (4.4 and later)."""
    return "slots" in bpy.types.Action.bl_rna.properties


def gltf_animation_mode() -> str:
    """Which of the glTF exporter's ways makes one animation of all that moves.

    Where actions have no slots, each object has an action of its own: only “active actions merged” plays them together.
    """
    return "ACTIONS" if has_slots() else "ACTIVE_ACTIONS"


def has_ply_nodes() -> bool:
    """Whether Geometry Nodes can read a .ply file of a name that they put together (4.5 and later)."""
    return hasattr(bpy.types, "GeometryNodeImportPLY") and hasattr(bpy.types, "FunctionNodeFormatString")


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
        cycles.use_denoising = False  # new scenes have it on, and would fail
        return False
    cycles.use_denoising = True
    cycles.denoising_input_passes, cycles.denoising_prefilter = "RGB", "NONE"
    if hasattr(cycles, "denoising_quality"):
        cycles.denoising_quality = "FAST"
    return True
