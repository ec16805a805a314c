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
from collections.abc import Iterable, Iterator, Sequence

import bpy
import numpy as np

from . import bake, bake_rig, compat, take_points, take_rigs
from .properties import ObjectTakes, Take
from .shared import protocol
from .take_data import fault, members, offsets, store, together
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
    points: int = 0,
) -> list[bpy.types.Object]:
    """A new take of a motion on the objects that were captured, which is shown then. Returns the objects.

    Args:
        rest_frame: timeline frame at which the objects were captured; None is the current one.
        job: the job's folder.
        rig: the same motion as a skeleton: then the take is an armature, and keeps the offsets to become keys later.
        places: the objects' world matrices [4, 4] when they were captured; without them, as they are now.
        points: of the cloud that the take becomes; 0: it becomes none.

    Raises:
        UserError: before anything is changed.
    """
    settings = bake.BakeSettings(rest_frame=rest_frame, places=tuple(places))
    with at_rest(objects):
        for obj in objects if points else ():
            take_points.check_free(obj, our_modifiers(obj))
        if rig is not None:
            bake_rig.check(objects, subject, rig, settings)
        moves = bake.local_moves(objects, subject, motion, settings)
    moved = _append(moves, timing, name, job, seed)
    if rig is not None:
        _add_rig(moved, subject, rig, settings)
    with quietly():
        for obj in moved if points else ():
            obj.animate3d.active.count, obj.animate3d.active.output = points, "POINTS"
    _show_new(moved, timing)
    return moved


def add_points(obj: bpy.types.Object, moves: np.ndarray, timing: Timing, name: str, job: str, seed: int) -> None:
    """A new take of an object from what moves its own vertices, [F-1, V, 3] float32, in its own space."""
    bake.check_object(obj, bake.BakeSettings())
    _show_new(_append([(obj, moves)], timing, name, job, seed), timing)


def _append(
    moves: Sequence[tuple[bpy.types.Object, np.ndarray]], timing: Timing, name: str, job: str, seed: int
) -> list[bpy.types.Object]:
    """New takes, active and not shown yet, of objects that are animated together. Returns the objects."""
    group = uuid.uuid4().hex
    for member, (obj, own_moves) in enumerate(moves):
        bake.make_own_mesh(obj)
        own: ObjectTakes = obj.animate3d
        take = own.takes.add()
        with quietly():
            take.name, take.prompt, take.seed, take.job = unused_name(own, name), name, str(seed), job
            take.group, take.member, take.frames = group, member, timing.frames
            take.offsets = store(own_moves, f"{obj.name} {name}")
            for field in TIMING:
                setattr(take, field, getattr(timing, field))
            own.active_index, own.is_shown = len(own.takes) - 1, True
    return [obj for obj, _ in moves]


def _show_new(objects: Sequence[bpy.types.Object], timing: Timing) -> None:
    with bake.shared_action(NAME) as shared:
        for obj in objects:
            show(obj, shared)
    bake.extend_timeline(bpy.context.scene, timing)


def _add_rig(
    objects: Sequence[bpy.types.Object], subject: protocol.Subject, rig: protocol.Rig, settings: bake.BakeSettings
) -> None:
    """Makes the active takes of objects armatures; what shows other takes goes before."""
    for obj in objects:
        _put_aside(obj)
        _remove_keys(obj)
    take_rigs.make(objects, [obj.animate3d.active for obj in objects], subject, rig, settings)
    with quietly():
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
    with at_rest(objects):
        bake_rig.check(objects, subject, rig, settings)
    _add_rig(objects, subject, rig, settings)
    for each in objects:
        show(each)
    return objects


def become(obj: bpy.types.Object, output: str, points: int = 0) -> None:
    """Lets the active take of an object, and of those that were animated with it, be keys, points, or its armature.

    Args:
        points: of a cloud that is made now.

    Raises:
        UserError: before anything is changed.
    """
    found = list(members(obj.animate3d.active))
    for each, _ in found if output == "POINTS" else ():
        error = fault(each)
        if error is not None:
            raise error
        take_points.check_free(each, our_modifiers(each))
    with quietly():
        for each, index in found:
            take = each.animate3d.takes[index]
            if output == "POINTS" and take.cloud is None and points:
                take.count = points
            take.output = output
            show(each)


def our_modifiers(obj: bpy.types.Object) -> set[str]:
    """The names of the modifiers through which takes move the object."""
    found = [take_rigs.modifier_of(obj, take) for take in obj.animate3d.takes]
    return {modifier.name for modifier in found if modifier is not None}


def recount(take: Take) -> None:
    """Another number of points is wanted: the cloud is made anew."""
    if _busy or take.cloud is None:
        return
    with quietly():
        for obj, index in list(members(take)):
            other = obj.animate3d.takes[index]
            other.count = take.count
            take_points.remove(obj, other)
            if obj.animate3d.active_index == index:
                show(obj)


def _put_aside(obj: bpy.types.Object, but: Take | None = None) -> None:
    """Takes the object off the armatures of its takes, and their points out of the scene, but for what one take is."""
    for take in obj.animate3d.takes:
        output = take.output if take == but else ""
        if output != "RIG":
            take_rigs.put_aside(obj, take)
        if output != "POINTS":
            take_points.put_aside(obj, take)
    if but is None or but.output != "POINTS":
        take_points.show_surface(obj)


def show(obj: bpy.types.Object, shared: bpy.types.Action | None = None) -> None:
    """Makes the shape keys of an object, or what it hangs on, those of its active take; with none active they go.

    Raises:
        UserError: the mesh has other vertices than the take.
    """
    own: ObjectTakes = obj.animate3d
    take = own.active
    _put_aside(obj, but=take)
    if take is None or take.output != "KEYS":
        _remove_keys(obj)
    if take is None:
        return
    error = fault(obj)
    if error is not None:
        raise error
    if take.output == "KEYS":
        _show_keys(obj, take, shared)
    elif take.output == "RIG":
        take_rigs.show(obj, take)
    else:
        if take.cloud is None:
            take_points.make(obj, take, offsets(take, obj))
        take_points.show(obj, take)
    mute(obj)


def _show_keys(obj: bpy.types.Object, take: Take, shared: bpy.types.Action | None) -> None:
    own: ObjectTakes = obj.animate3d
    moves = offsets(take, obj)
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
    with quietly():
        for each, index in [] if take is None else list(members(take)):
            each.animate3d.active_index = index
            _try_show(each)
    if take is None:
        _try_show(obj)


def retime(take: Take) -> None:
    """The timing of a take has changed: its keys follow, and so do the objects that were animated with it."""
    if _busy:
        return
    with quietly():
        for obj, index in list(members(take)):
            other = obj.animate3d.takes[index]
            for field in TIMING if other != take else ():
                setattr(other, field, getattr(take, field))
            if other == take:
                take_rigs.retime(other)
            take_points.retime(other)
            keys = our_keys(obj)
            if obj.animate3d.active_index == index and len(keys) == other.frames - 1:
                bake.animate_keys(obj, keys, other.timing, NAME)


@contextlib.contextmanager
def at_rest(objects: Iterable[bpy.types.Object]) -> Iterator[None]:
    """Meanwhile, no take moves the objects: a new motion starts from the rest pose, whatever frame is shown."""
    keys = [(obj, key.name) for obj in objects for key in our_keys(obj) if not key.mute]
    rigs = [
        (obj, modifier.name)
        for obj in objects
        for take in obj.animate3d.takes
        if (modifier := take_rigs.modifier_of(obj, take)) is not None and modifier.show_viewport
    ]
    for obj, name in keys:
        obj.data.shape_keys.key_blocks[name].mute = True
    for obj, name in rigs:
        obj.modifiers[name].show_viewport = False
    try:
        yield
    finally:
        for key in (key for obj, name in keys for key in our_keys(obj) if key.name == name):
            key.mute = False
        for obj, name in rigs:
            if name in obj.modifiers:  # it goes where the armature is put aside
                obj.modifiers[name].show_viewport = True


def mute(obj: bpy.types.Object) -> None:
    """Lets the keys or the armature of the shown take move the object, or not."""
    own: ObjectTakes = obj.animate3d
    for key in our_keys(obj):
        key.mute = not own.is_shown
    modifier = take_rigs.modifier_of(obj, own.active) if own.active is not None else None
    if modifier is not None:
        modifier.show_viewport = modifier.show_render = own.is_shown
    for key in take_points.keys(own.active) if own.active is not None else ():
        key.mute = not own.is_shown


def delete(obj: bpy.types.Object) -> None:
    """Removes the active take; the one before it is shown then, or where there is none, the rest pose."""
    for each, index in list(members(obj.animate3d.active)):
        own: ObjectTakes = each.animate3d
        stored = own.takes[index].offsets
        take_rigs.remove(each, own.takes[index])
        take_points.remove(each, own.takes[index])
        own.takes.remove(index)
        if stored is not None and stored.users == 0:
            bpy.data.meshes.remove(stored)
        with quietly():
            own.active_index = min(max(own.active_index - (index <= own.active_index), 0), len(own.takes) - 1)
        show(each)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
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


def unused_name(own: ObjectTakes, name: str) -> str:
    """The name, with a number where another take has it."""
    taken = {take.name for take in own.takes}
    number, result = 1, name
    while result in taken:
        number += 1
        result = f"{name} {number}"
    return result
