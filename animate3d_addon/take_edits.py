"""What becomes of a take besides being shown: a second one, plain keys on the NLA, a copy of the object."""

from __future__ import annotations

import uuid

import bpy

from . import bake, compat, take_data, take_points, take_rigs, takes
from .properties import ObjectTakes


def duplicate(obj: bpy.types.Object) -> None:
    """Another take of the same motion, to be timed in another way."""
    group = uuid.uuid4().hex
    rig = obj.animate3d.active.rig and take_rigs.duplicate(obj.animate3d.active.rig)
    for each, index in list(take_data.members(obj.animate3d.active)):
        own: ObjectTakes = each.animate3d
        copy = own.takes.add()
        take = own.takes[index]  # only now: adding moves the others in memory
        with takes.quietly():
            for field in ("offsets", "frames", "member", "job", "prompt", "seed", "output", "count", *takes.TIMING):
                setattr(copy, field, getattr(take, field))
            copy.name, copy.group, copy.rig = takes.unused_name(own, take.name), group, rig
            copy.rig_place = take_rigs.place_of(each, take)
            copy.cloud = take.cloud and take_points.duplicate(take.cloud, each)
            own.active_index = len(own.takes) - 1
        takes.show(each)


def push_to_nla(obj: bpy.types.Object) -> None:
    """The shown take as plain shape keys, or as an armature or points of its own, with a strip on an NLA track.

    Other takes can be added to it.
    """
    if obj.animate3d.active.output != "KEYS":
        {"RIG": _push_rig, "POINTS": _push_points}[obj.animate3d.active.output](obj)
        return
    for each, index in list(take_data.members(obj.animate3d.active)):
        own: ObjectTakes = each.animate3d
        take = own.takes[index]
        keys, timing, name = takes.our_keys(each), take.timing, take.name
        shape_keys = each.data.shape_keys
        compat.remove_fcurves(shape_keys, {key.path_from_id("value") for key in keys})
        own.keys.clear()
        for number, key in enumerate(keys, start=1):
            key.name = f"{name} {number:03d}"
        before = shape_keys.animation_data.action
        slot = compat.slot_of(shape_keys)
        shape_keys.animation_data.action = None
        action = bpy.data.actions.new(name)
        bake.animate_keys(each, keys, timing, name, action)
        compat.push_down(shape_keys, shape_keys.animation_data.action, name, timing.start)
        compat.assign(shape_keys, before, slot)
        with takes.quietly():
            own.active_index = -1


def _push_rig(obj: bpy.types.Object) -> None:
    """The armature of the shown take becomes the user's: its action goes onto a track, and no take knows it."""
    take = obj.animate3d.active
    armature, name, start = take.rig, take.name, take.timing.start
    action = armature.animation_data.action
    action.name = name
    compat.push_down(armature, action, name, start)
    armature.animation_data.action = None
    with takes.quietly():
        for each, index in list(take_data.members(take)):
            other = each.animate3d.takes[index]
            other.rig, other.output = None, "KEYS"
            each.animate3d.active_index = -1


def _push_points(obj: bpy.types.Object) -> None:
    """The points of the shown take become the user's; the surface stays hidden behind them."""
    for each, index in list(take_data.members(obj.animate3d.active)):
        take = each.animate3d.takes[index]
        take_points.push_to_nla(take)
        with takes.quietly():
            take.output, each.animate3d.active_index = "KEYS", -1


def to_copy(obj: bpy.types.Object) -> list[bpy.types.Object]:
    """A copy of the object beside it, with the shown take as its only one. Returns the copies."""
    copies = []
    group = uuid.uuid4().hex
    rig = obj.animate3d.active.rig and take_rigs.duplicate(obj.animate3d.active.rig)
    for each, index in list(take_data.members(obj.animate3d.active)):
        copy = each.copy()
        copy.data = each.data.copy()
        copy.name = f"{each.name} {each.animate3d.takes[index].name}"
        for collection in each.users_collection:
            collection.objects.link(copy)
        own: ObjectTakes = copy.animate3d
        with takes.quietly():
            for other in reversed(range(len(own.takes))):
                if other != index:
                    own.takes.remove(other)
            own.takes[0].group, own.active_index, own.surface = group, 0, ""
            cloud = own.takes[0].cloud
            own.takes[0].cloud = cloud and take_points.duplicate(cloud, copy)
            copy.display_type, copy.hide_render = _as_surface(each)
            if rig is not None:
                take_rigs.exchange(copy, own.takes[0], rig, take_rigs.place_of(each, each.animate3d.takes[index]))
        compat.own_action(copy.data.shape_keys)
        takes.show(copy)
        copies.append(copy)
    return copies


def _as_surface(obj: bpy.types.Object) -> tuple[str, bool]:
    """How an object is drawn, and whether renders leave it out, where its points are not shown."""
    own: ObjectTakes = obj.animate3d
    return (own.surface, own.surface_hidden) if own.surface else (obj.display_type, obj.hide_render)
