"""Takes that are armatures: hung on while their take is shown, put aside while another one is.

The armature of a take that isn't shown stays in the file, with what the user has changed in it, outside of every
collection; its objects have no modifier for it and their own parent again. The vertex groups stay until the take is
deleted. What the keys of the bones are made from is stored with the take's offsets, so that a take can be timed anew.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import fields

import bpy
import numpy as np
from mathutils import Matrix

from . import bake, bake_rig, compat
from .properties import Take
from .shared import protocol

NAME = bake.BakeSettings().name
STORED = "rig"  # a property of the mesh that holds a take's offsets
PER_VERTEX = ("bones", "weights")  # those live in the vertex groups


def make(
    objects: Sequence[bpy.types.Object],
    takes: Sequence[Take],
    subject: protocol.Subject,
    rig: protocol.Rig,
    settings: bake.BakeSettings,
) -> None:
    """Bakes the armature of takes, one for each of the objects; they hang on it. `bake_rig.check` comes before."""
    rig = bake_rig.with_free_names(rig, objects)
    armature = bake_rig.bake_rig(objects, subject, rig, settings, takes[0].timing)
    for take in takes:
        take.rig = armature
        _store(take, rig)


def show(obj: bpy.types.Object, take: Take) -> None:
    """Lets the object hang on the armature of its take."""
    armature = take.rig
    if not armature.users_collection:
        bake_rig.link_beside(armature, obj)
        armature.matrix_world = obj.matrix_world @ Matrix(np.reshape(take.rig_place, (4, 4)).tolist())
        bpy.context.view_layer.update()
    if modifier_of(obj, take) is None:
        bake_rig.hang(obj, armature, NAME)
    bake_rig.bind(armature, obj)


def put_aside(obj: bpy.types.Object, take: Take) -> None:
    """Takes the object off the armature of a take, which leaves the scene with the last of its objects."""
    armature, modifier = take.rig, modifier_of(obj, take)
    if armature is None or modifier is None:
        return
    bpy.context.view_layer.update()
    take.rig_place = place_of(obj, take)
    obj.modifiers.remove(modifier)
    bake_rig.unbind(armature, obj)
    if not bake_rig.skinned_by(armature):
        for collection in armature.users_collection:
            collection.objects.unlink(armature)


def place_of(obj: bpy.types.Object, take: Take) -> Sequence[float]:
    """Where the armature of a take is, seen from the object (16 numbers): now, or where it was put aside."""
    if take.rig is None or not take.rig.users_collection:
        return take.rig_place
    return np.array(obj.matrix_world.inverted_safe() @ take.rig.matrix_world).ravel()


def modifier_of(obj: bpy.types.Object, take: Take) -> bpy.types.Modifier | None:
    """The modifier through which the armature of a take moves the object."""
    if take.rig is None:
        return None
    return next((m for m in obj.modifiers if m.type == "ARMATURE" and m.object == take.rig), None)


def retime(take: Take) -> None:
    """Writes the bones' keys anew, as the take is timed now."""
    rig = _load(take)
    if rig is not None and take.rig is not None:
        bake_rig.animate(take.rig, rig, take.timing, NAME)


def duplicate(armature: bpy.types.Object) -> bpy.types.Object:
    """Another object of the same bones, in no collection, with an action of its own."""
    copy = armature.copy()
    compat.own_action(copy)
    return copy


def exchange(obj: bpy.types.Object, take: Take, armature: bpy.types.Object, place: Sequence[float]) -> None:
    """Lets a copy of an object hang on a copy of its armature, once it is shown."""
    bpy.context.view_layer.update()
    modifier = modifier_of(obj, take)
    if modifier is not None:
        obj.modifiers.remove(modifier)
    if take.rig is not None:
        bake_rig.unbind(take.rig, obj)
    take.rig, take.rig_place = armature, place


def remove(obj: bpy.types.Object, take: Take) -> None:
    """Takes the armature of a take back, with the vertex groups that no other take of the object needs."""
    armature = take.rig
    if armature is None:
        return
    put_aside(obj, take)
    take.rig = None
    others = {other.rig.data for other in obj.animate3d.takes if other.rig is not None}
    if armature.data not in others:
        for bone in armature.data.bones:
            group = obj.vertex_groups.get(bone.name)
            if group is not None:
                obj.vertex_groups.remove(group)
    if armature.users == 0:
        discard(armature)


def discard(armature: bpy.types.Object) -> None:
    """Removes an armature that nobody uses, and what only it has used."""
    data, action = armature.data, armature.animation_data.action if armature.animation_data else None
    bpy.data.objects.remove(armature)
    for datablock in (data, action):
        if datablock is not None and datablock.users == 0:
            bpy.data.batch_remove([datablock])


def _store(take: Take, rig: protocol.Rig) -> None:
    arrays = {field.name: getattr(rig, field.name) for field in fields(rig) if field.name not in PER_VERTEX}
    file = io.BytesIO()
    np.savez(file, **arrays)
    take.offsets[STORED] = file.getvalue()


def _load(take: Take) -> protocol.Rig | None:
    """What was stored, without what is kept in vertex groups."""
    stored = take.offsets.get(STORED) if take.offsets is not None else None
    if stored is None:
        return None
    with np.load(io.BytesIO(stored), allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    arrays["names"] = tuple(map(str, arrays["names"]))
    empty = np.zeros((0, 0))
    return protocol.Rig(**arrays, bones=empty.astype(np.int32), weights=empty)
