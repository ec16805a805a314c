"""Takes: several motions of one object, kept in the .blend file, one of them shown by shape keys.

A take's offsets lie in a mesh datablock of its own (vertex f·V + v is where vertex v goes on frame f+1), which saves,
links, undoes and shares like any other data of Blender and costs one memory copy to read. Only the shown take has shape
keys; another one takes them over, so that the list of keys stays short, exports hold one motion, and a switch
needs no new keys. Timing, loops and strength are F-curves alone.

Objects that were animated together switch, and are timed, together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator, Sequence

import bpy
import numpy as np

from . import bake, bake_rig, compat, take_rigs
from .properties import ObjectTakes, Take
from .shared import protocol
from .timing import Timing

NAME = bake.BakeSettings().name
TIMING = ("start", "step", "strength", "loop", "first", "last")
_busy = False  # properties that we set ourselves call us again


def add(
    objects: Sequence[bpy.types.Object],
    subject: protocol.Subject,
    motion: protocol.Motion,
    timing: Timing,
    name: str,
    rest_frame: float | None = None,
    job: str = "",
    seed: int = 0,
    rig: protocol.Rig | None = None,
    places: Sequence[np.ndarray] = (),
) -> list[bpy.types.Object]:
    """A new take of a motion on the objects that were captured, which is shown then. Returns the objects.

    Args:
        rest_frame: timeline frame at which the objects were captured; None is the current one.
        job: the job's folder.
        rig: the same motion as a skeleton: then the take is an armature, and keeps the offsets to become keys later.
        places: the objects' world matrices [4, 4] when they were captured; without them, as they are now.

    Raises:
        UserError: before anything is changed.
    """
    settings = bake.BakeSettings(rest_frame=rest_frame, places=tuple(places))
    with take_rigs.at_rest(objects):
        if rig is not None:
            bake_rig.check(objects, subject, rig, settings)
        moves = bake.local_moves(objects, subject, motion, settings)
    group = uuid.uuid4().hex
    for member, (obj, offsets) in enumerate(moves):
        bake.make_own_mesh(obj)
        own: ObjectTakes = obj.animate3d
        take = own.takes.add()
        with _quietly():
            take.name, take.prompt, take.seed, take.job = _unused(own, name), name, str(seed), job
            take.group, take.member, take.frames = group, member, len(motion.offsets)
            take.offsets = _store(offsets, f"{obj.name} {name}")
            for field in TIMING:
                setattr(take, field, getattr(timing, field))
            own.active_index, own.is_shown = len(own.takes) - 1, True
    moved = [obj for obj, _ in moves]
    if rig is not None:
        _add_rig(moved, subject, rig, settings)
    with bake.shared_action(NAME) as shared:
        for obj in moved:
            show(obj, shared)
    bake.extend_timeline(bpy.context.scene, timing)
    return moved


def _add_rig(
    objects: Sequence[bpy.types.Object], subject: protocol.Subject, rig: protocol.Rig, settings: bake.BakeSettings
) -> None:
    """Makes the active takes of objects armatures; what shows other takes goes before."""
    for obj in objects:
        _put_aside(obj)
        _remove_keys(obj)
    take_rigs.make(objects, [obj.animate3d.active for obj in objects], subject, rig, settings)
    with _quietly():
        for obj in objects:
            obj.animate3d.active.output = "RIG"


def become_rig(
    obj: bpy.types.Object,
    subject: protocol.Subject,
    rig: protocol.Rig,
    rest_frame: float | None = None,
    places: Sequence[np.ndarray] = (),
) -> list[bpy.types.Object]:
    """Makes the active take of an object, and of those that were animated with it, an armature. Returns the objects.

    Raises:
        UserError: before anything is changed.
    """
    objects = together(obj)
    settings = bake.BakeSettings(rest_frame=rest_frame, places=tuple(places))
    subject = dataclasses.replace(subject, object_names=tuple(each.name for each in objects))
    with take_rigs.at_rest(objects):
        bake_rig.check(objects, subject, rig, settings)
    _add_rig(objects, subject, rig, settings)
    for each in objects:
        show(each)
    return objects


def together(obj: bpy.types.Object) -> list[bpy.types.Object]:
    """The object and those that were animated with it in its active take, in the order of the subject."""
    found = sorted(_together(obj.animate3d.active), key=lambda found: found[0].animate3d.takes[found[1]].member)
    return [each for each, _ in found]


def become(obj: bpy.types.Object, output: str) -> None:
    """Lets the active take of an object, and of those that were animated with it, be keys, or the armature it has."""
    with _quietly():
        for each, index in list(_together(obj.animate3d.active)):
            each.animate3d.takes[index].output = output
            show(each)


def _put_aside(obj: bpy.types.Object, but: Take | None = None) -> None:
    """Takes the object off the armatures of its takes, but for one."""
    for take in obj.animate3d.takes:
        if take != but:
            take_rigs.put_aside(obj, take)


def show(obj: bpy.types.Object, shared: bpy.types.Action | None = None) -> None:
    """Makes the shape keys of an object, or what it hangs on, those of its active take; with none active they go.

    Raises:
        UserError: the mesh has other vertices than the take.
    """
    own: ObjectTakes = obj.animate3d
    take = own.active
    is_rig = take is not None and take.output == "RIG"
    _put_aside(obj, but=take if is_rig else None)
    if take is None or is_rig:
        _remove_keys(obj)
    if take is None:
        return
    if is_rig:
        error = fault(obj)
        if error is not None:
            raise error
        take_rigs.show(obj, take)
        mute(obj)
        return
    moves = _load(take, obj)
    if obj.data.shape_keys is None:
        own.made_basis = True
    keys = our_keys(obj)
    for key in keys[len(moves) :]:
        _remove_key(obj, key)
    keys = bake.write_keys(obj, moves, NAME, keys[: len(moves)])
    own.keys.clear()
    for key in keys:
        own.keys.add().name = key.name
    bake.animate_keys(obj, keys, take.timing, NAME, shared)
    mute(obj)


def our_keys(obj: bpy.types.Object) -> list[bpy.types.ShapeKey]:
    """The shape keys that hold the shown take, in the order of the motion; those that the user removed are left out."""
    if obj.data is None or obj.data.shape_keys is None:
        return []
    blocks = obj.data.shape_keys.key_blocks
    return [blocks[each.name] for each in obj.animate3d.keys if each.name in blocks]


def switch(obj: bpy.types.Object) -> None:
    """Shows the active take of an object, and that of the objects that were animated with it."""
    if _busy:
        return
    take = obj.animate3d.active
    with _quietly():
        for each, index in [] if take is None else list(_together(take)):
            each.animate3d.active_index = index
            _try_show(each)
    if take is None:
        _try_show(obj)


def retime(take: Take) -> None:
    """The timing of a take has changed: its keys follow, and so do the objects that were animated with it."""
    if _busy:
        return
    with _quietly():
        for obj, index in list(_together(take)):
            other = obj.animate3d.takes[index]
            for field in TIMING if other != take else ():
                setattr(other, field, getattr(take, field))
            if other == take:
                take_rigs.retime(other)
            keys = our_keys(obj)
            if obj.animate3d.active_index == index and len(keys) == other.frames - 1:
                bake.animate_keys(obj, keys, other.timing, NAME)


def mute(obj: bpy.types.Object) -> None:
    """Lets the keys or the armature of the shown take move the object, or not."""
    own: ObjectTakes = obj.animate3d
    for key in our_keys(obj):
        key.mute = not own.is_shown
    modifier = take_rigs.modifier_of(obj, own.active) if own.active is not None else None
    if modifier is not None:
        modifier.show_viewport = modifier.show_render = own.is_shown


def duplicate(obj: bpy.types.Object) -> None:
    """Another take of the same motion, to be timed in another way."""
    group = uuid.uuid4().hex
    rig = obj.animate3d.active.rig and take_rigs.duplicate(obj.animate3d.active.rig)
    for each, index in list(_together(obj.animate3d.active)):
        own: ObjectTakes = each.animate3d
        copy = own.takes.add()
        take = own.takes[index]  # only now: adding moves the others in memory
        with _quietly():
            for field in ("offsets", "frames", "member", "job", "prompt", "seed", "output", *TIMING):
                setattr(copy, field, getattr(take, field))
            copy.name, copy.group, copy.rig = _unused(own, take.name), group, rig
            copy.rig_place = take_rigs.place_of(each, take)
            own.active_index = len(own.takes) - 1
        show(each)


def delete(obj: bpy.types.Object) -> None:
    """Removes the active take; the one before it is shown then, or where there is none, the rest pose."""
    for each, index in list(_together(obj.animate3d.active)):
        own: ObjectTakes = each.animate3d
        stored = own.takes[index].offsets
        take_rigs.remove(each, own.takes[index])
        own.takes.remove(index)
        if stored is not None and stored.users == 0:
            bpy.data.meshes.remove(stored)
        with _quietly():
            own.active_index = min(max(own.active_index - (index <= own.active_index), 0), len(own.takes) - 1)
        show(each)


def push_to_nla(obj: bpy.types.Object) -> None:
    """The shown take as plain shape keys, or as an armature of its own, with a strip on an NLA track.

    Other takes can be added to it.
    """
    if obj.animate3d.active.output == "RIG":
        _push_rig(obj)
        return
    for each, index in list(_together(obj.animate3d.active)):
        own: ObjectTakes = each.animate3d
        take = own.takes[index]
        keys, timing, name = our_keys(each), take.timing, take.name
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
        with _quietly():
            own.active_index = -1


def _push_rig(obj: bpy.types.Object) -> None:
    """The armature of the shown take becomes the user's: its action goes onto a track, and no take knows it."""
    take = obj.animate3d.active
    armature, name, start = take.rig, take.name, take.timing.start
    action = armature.animation_data.action
    action.name = name
    compat.push_down(armature, action, name, start)
    armature.animation_data.action = None
    with _quietly():
        for each, index in list(_together(take)):
            other = each.animate3d.takes[index]
            other.rig, other.output = None, "KEYS"
            each.animate3d.active_index = -1


def to_copy(obj: bpy.types.Object) -> list[bpy.types.Object]:
    """A copy of the object beside it, with the shown take as its only one. Returns the copies."""
    copies = []
    group = uuid.uuid4().hex
    rig = obj.animate3d.active.rig and take_rigs.duplicate(obj.animate3d.active.rig)
    for each, index in list(_together(obj.animate3d.active)):
        copy = each.copy()
        copy.data = each.data.copy()
        copy.name = f"{each.name} {each.animate3d.takes[index].name}"
        for collection in each.users_collection:
            collection.objects.link(copy)
        own: ObjectTakes = copy.animate3d
        with _quietly():
            for other in reversed(range(len(own.takes))):
                if other != index:
                    own.takes.remove(other)
            own.takes[0].group, own.active_index = group, 0
            if rig is not None:
                take_rigs.exchange(copy, own.takes[0], rig, take_rigs.place_of(each, each.animate3d.takes[index]))
        compat.own_action(copy.data.shape_keys)
        show(copy)
        copies.append(copy)
    return copies


def _together(take: Take) -> Iterator[tuple[bpy.types.Object, int]]:
    """The object of a take and the objects that were animated with it, each with the take's index there.

    Duplicates of objects keep their takes: a member that is there more than once is left alone.
    """
    found: dict[int, list[tuple[bpy.types.Object, int]]] = {}
    for obj in bpy.data.objects:
        for index, other in enumerate(obj.animate3d.takes):
            if other.group == take.group:
                found.setdefault(other.member, []).append((obj, index))
    for member, places in found.items():
        if member == take.member:
            yield next(place for place in places if place[0] == take.id_data)
        elif len(places) == 1:
            yield places[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Meanwhile, properties that are set don't call us."""
    global _busy
    before, _busy = _busy, True
    try:
        yield
    finally:
        _busy = before


def _try_show(obj: bpy.types.Object) -> None:
    """A property can't refuse: what doesn't fit any more is told by the panel (`fault`)."""
    if fault(obj) is None:
        show(obj)


def fault(obj: bpy.types.Object) -> protocol.UserError | None:
    """Why the active take can't be shown; None where it can."""
    take = obj.animate3d.active
    if take is None:
        return None
    if obj.type != "MESH" or take.offsets is None or (take.output == "RIG" and take.rig is None):
        return protocol.UserError("This take has lost its motion.", "Delete it.")
    expected = len(take.offsets.vertices) // (take.frames - 1)
    if expected != len(obj.data.vertices):
        return protocol.UserError(
            f"The mesh has changed: the take has {expected} vertices, the mesh has {len(obj.data.vertices)}.",
            "Undo the change, or delete the take.",
        )
    return None


def _load(take: Take, obj: bpy.types.Object) -> np.ndarray:
    """The offsets [F-1, V, 3] float32. Raises `UserError`."""
    error = fault(obj)
    if error is not None:
        raise error
    flat = np.empty(len(take.offsets.vertices) * 3, np.float32)
    take.offsets.attributes["position"].data.foreach_get("vector", flat)
    return flat.reshape(take.frames - 1, -1, 3)


def _store(offsets: np.ndarray, name: str) -> bpy.types.Mesh:
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(offsets.shape[0] * offsets.shape[1])
    mesh.attributes["position"].data.foreach_set("vector", np.ascontiguousarray(offsets, np.float32).ravel())
    return mesh


def _remove_keys(obj: bpy.types.Object) -> None:
    """Takes back everything that showing a take has added to the object's shape keys."""
    own: ObjectTakes = obj.animate3d
    for key in our_keys(obj):
        _remove_key(obj, key)
    own.keys.clear()
    keys = obj.data.shape_keys if obj.type == "MESH" else None
    if keys is not None and own.made_basis and len(keys.key_blocks) == 1:
        obj.shape_key_clear()
        own.made_basis = False


def _remove_key(obj: bpy.types.Object, key: bpy.types.ShapeKey) -> None:
    compat.remove_fcurves(obj.data.shape_keys, {key.path_from_id("value")})
    obj.shape_key_remove(key)


def _unused(own: ObjectTakes, name: str) -> str:
    """The name, with a number where another take has it."""
    taken = {take.name for take in own.takes}
    number, result = 1, name
    while result in taken:
        number += 1
        result = f"{name} {number}"
    return result
