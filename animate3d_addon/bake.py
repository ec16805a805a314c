"""A motion to relative shape keys on the timeline.

Key k of F-1 holds frame k of the motion. Its value is a hat, 0-1-0 over the neighbouring frames, so that Blender, glTF,
FBX and USD all blend linearly between neighbouring frames. Frame 0 has no key: there the object looks exactly as
before. After the last frame the last key stays at 1, as Blender's F-curves do everywhere and as exporters that sample
the frame range expect.

What was there stays: other shape keys, their drivers and animation, transforms, modifiers. The keys of a bake share one
action with a slot per object (from Blender 4.4 on), so that an exporter writes one animation for all objects. Shape
keys that already have an action keep it, and ours are added to it (to a copy where others use it as well). A mesh that
several objects share is copied for each object that moves.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import bpy
import numpy as np

from . import compat, meshes
from .shared import protocol
from .temporary import temporary_scene
from .timing import Points, Timing, hats


@dataclass(frozen=True)
class BakeSettings:
    """How a motion gets onto the timeline."""

    start: int = 1  # timeline frame of the motion's frame 0
    step: int = 3  # timeline frames per motion frame: 16 frames are the video model's 8 per second at 24
    name: str = "Animate3D"  # of the keys and the action
    apply_modifiers: bool = False  # make plain meshes of objects with modifiers and of curves first (batch mode)
    rest_frame: float | None = None  # timeline frame at which the objects were captured; None is the current one
    places: tuple[np.ndarray, ...] = ()  # their world matrices [4, 4] then, in the subject's order; empty: as now


@dataclass(frozen=True)
class BakedObject:
    """What was added to one object."""

    object: bpy.types.Object
    keys: tuple[str, ...]  # names, in the order of the motion's frames 1..F-1
    action: bpy.types.Action


def bake_shape_keys(
    objects: Sequence[bpy.types.Object],
    subject: protocol.Subject,
    motion: protocol.Motion,
    settings: BakeSettings = BakeSettings(),
) -> list[BakedObject]:
    """Puts the motion onto the objects that were captured, and extends the scene's frame range to it.

    `objects` may be in any order and may hold more than was captured. Raises `UserError` before anything is changed.
    """
    timing = Timing(len(motion.offsets), start=settings.start, step=settings.step)
    baked = []
    with shared_action(settings.name) as shared:
        for obj, moves in local_moves(objects, subject, motion, settings):
            make_own_mesh(obj)
            keys = write_keys(obj, moves, settings.name)
            action = animate_keys(obj, keys, timing, settings.name, shared)
            baked.append(BakedObject(obj, tuple(key.name for key in keys), action))
    extend_timeline(bpy.context.scene, timing)
    return baked


def local_moves(
    objects: Sequence[bpy.types.Object], subject: protocol.Subject, motion: protocol.Motion, settings: BakeSettings
) -> list[tuple[bpy.types.Object, np.ndarray]]:
    """The objects in the subject's order, each with what to add to its mesh's vertices: [F-1, V, 3] float32, local.

    Objects are changed only where modifiers are to be applied. Raises `UserError` before that.
    """
    chosen = captured(objects, subject)
    offsets = _split_offsets(subject, motion)
    for obj in chosen:
        check_object(obj, settings)
    frame = bpy.context.scene.frame_current_final if settings.rest_frame is None else settings.rest_frame
    places = captured_places(subject, settings)
    with temporary_scene() as scene:
        local = _local_offsets(chosen, offsets, places, scene, frame, settings)
    if settings.apply_modifiers:
        chosen = make_plain(chosen, frame)
    return list(zip(chosen, local, strict=True))


@contextlib.contextmanager
def shared_action(name: str) -> Iterator[bpy.types.Action | None]:
    """One action for all objects of a bake, where this Blender can do that; it goes again where none took it."""
    action = bpy.data.actions.new(name) if compat.has_slots() else None
    try:
        yield action
    finally:
        if action is not None and action.users == 0:
            bpy.data.actions.remove(action)


def captured(objects: Sequence[bpy.types.Object], subject: protocol.Subject) -> list[bpy.types.Object]:
    """The objects of the subject in its order: by name, or where they were renamed, by their place in the list."""
    by_name = {obj.name: obj for obj in objects}
    missing = [name for name in subject.object_names if name not in by_name]
    if not missing:
        return [by_name[name] for name in subject.object_names]
    surfaces = [obj for obj in objects if obj.type in meshes.MESH_LIKE]
    if len(surfaces) == len(subject.object_names):
        return surfaces
    raise protocol.UserError(f"“{missing[0]}” is no longer there.", "Undo the deletion, or start again.")


def _split_offsets(subject: protocol.Subject, motion: protocol.Motion) -> list[np.ndarray]:
    """Per object [F-1, V, 3] in world space, frame 0 left out."""
    if motion.offsets.shape[1:] != (sum(subject.object_counts), 3) or len(motion.offsets) < 2:
        raise protocol.UserError("The motion doesn't belong to these objects.", "Start the job again.")
    if not np.isfinite(motion.offsets).all():
        raise protocol.UserError("The motion has invalid numbers in it.", "Start the job again.", kind="internal")
    return np.split(motion.offsets[1:], np.cumsum(subject.object_counts)[:-1], axis=1)


@dataclass(frozen=True)
class Place:
    """Where an object was when it was captured, and how it looked."""

    matrix: np.ndarray  # [4, 4]
    vertices: np.ndarray  # [V, 3], local

    def since(self, piece: meshes.Piece) -> np.ndarray:
        """What took the object from there to where it is now [4, 4]; nothing where it has other vertices by now.

        Who applied a transform meanwhile has moved the vertices, and the look is where it was.
        """
        size = np.ptp(self.vertices, axis=0).max()
        if self.vertices.shape != piece.vertices.shape or np.abs(self.vertices - piece.vertices).max() > 1e-3 * size:
            return np.eye(4)
        return piece.matrix_world @ np.linalg.inv(self.matrix)


def captured_places(subject: protocol.Subject, settings: BakeSettings) -> list[Place | None]:
    """One for each object of the subject; None where that isn't known, or where the object was squashed flat."""
    count = len(subject.object_counts)
    if len(settings.places) != count:
        return [None] * count
    world = np.split(
        protocol.transform_points(subject.to_world, subject.vertices), np.cumsum(subject.object_counts)[:-1]
    )
    return [
        Place(matrix, protocol.transform_points(np.linalg.inv(matrix), vertices))
        if len(vertices) and abs(np.linalg.det(matrix)) > 1e-30
        else None
        for matrix, vertices in zip(settings.places, world, strict=True)
    ]


def check_object(obj: bpy.types.Object, settings: BakeSettings) -> None:
    if obj.library is not None or obj.override_library is not None:
        raise meshes.Mendable(
            f"“{obj.name}” is linked from another file and can't be changed.",
            "Use Object > Relations > Make Local > All.",
            "LOCAL",
        )
    if obj.type != "MESH" and not settings.apply_modifiers:
        message, hint = f"“{obj.name}” is not a mesh.", "Use Object > Convert > Mesh, and start again."
        raise meshes.Mendable(message, hint, "CONVERT")
    keys = obj.data.shape_keys if obj.type == "MESH" else None
    if keys is not None and not keys.use_relative and not _will_be_plain(obj, settings):
        raise protocol.UserError(
            f"“{obj.name}” has absolute shape keys, which can't be combined with new ones.",
            "Turn on “Relative” in its shape keys, or apply them.",
        )


def _will_be_plain(obj: bpy.types.Object, settings: BakeSettings) -> bool:
    return settings.apply_modifiers and (obj.type != "MESH" or meshes.is_deformed(obj))


def _local_offsets(
    objects: Sequence[bpy.types.Object],
    offsets: Sequence[np.ndarray],
    places: Sequence[Place | None],
    scene: bpy.types.Scene,
    frame: float,
    settings: BakeSettings,
) -> list[np.ndarray]:
    """Per object [F-1, V, 3] float32: what to add to the mesh's own vertices so that its look moves by `offsets`."""
    result = []
    pieces = meshes.evaluate(objects, scene, frame)
    for obj, world, place, piece in zip(objects, offsets, places, pieces, strict=True):
        if len(piece.vertices) != world.shape[1]:
            raise protocol.UserError(
                f"“{obj.name}” has changed since: it had {world.shape[1]} vertices and has {len(piece.vertices)} now.",
                "Undo the change, or start again.",
            )
        then = piece.matrix_world if place is None else np.linalg.inv(place.since(piece)) @ piece.matrix_world
        # The pseudo-inverse also serves an object that is squashed flat by a scale of zero.
        local = world.astype(np.float64) @ np.linalg.pinv(then[:3, :3], rcond=1e-12).T
        if meshes.is_deformed(obj) and not _will_be_plain(obj, settings):
            local = _through_deformation(obj, local, piece, scene, frame)
        result.append(local.astype(np.float32))
    return result


def _through_deformation(
    obj: bpy.types.Object, looks: np.ndarray, piece: meshes.Piece, scene: bpy.types.Scene, frame: float
) -> np.ndarray:
    """Moves [F-1, V, 3] of the mesh's vertices that make its deformed look move by `looks` [F-1, V, 3].

    How each vertex follows its mesh is measured: all vertices are shifted a little along each axis. That is exact for
    armatures, lattices and hooks at their rest pose, and leaves the moves as they are under smoothing and the like.
    """
    if len(obj.data.vertices) != len(piece.vertices):
        raise protocol.UserError(
            f"“{obj.name}” has modifiers that change its number of vertices.",
            "Apply them first, or turn on “Apply Modifiers”.",
        )
    size = float(np.ptp(piece.vertices, axis=0).max()) or 1.0
    follow = np.empty((len(piece.vertices), 3, 3))
    for axis in range(3):
        shifted = _shifted(obj, axis, 0.01 * size)
        moved = meshes.evaluate([shifted], scene, frame)[0].vertices
        follow[:, :, axis] = (moved - piece.vertices) / (0.01 * size)
    return np.einsum("vij,fvj->fvi", np.linalg.pinv(follow, rcond=1e-3), looks)


def _shifted(obj: bpy.types.Object, axis: int, distance: float) -> bpy.types.Object:
    """A copy of the object with its own mesh, every vertex and shape key of which is shifted along a local axis."""
    copy = obj.copy()
    copy.data = obj.data.copy()
    keys = copy.data.shape_keys
    for points in [copy.data.vertices, *(key.points for key in (keys.key_blocks if keys else ()))]:
        flat = np.empty(len(points) * 3, np.float32)
        points.foreach_get("co", flat)
        flat[axis::3] += distance
        points.foreach_set("co", flat)
    return copy


def make_plain(objects: Sequence[bpy.types.Object], frame: float) -> list[bpy.types.Object]:
    """The objects, those with modifiers and those that are no mesh turned into plain meshes."""
    chosen = [obj.type != "MESH" or meshes.is_deformed(obj) for obj in objects]
    plain = iter(meshes.freeze([obj for obj, is_chosen in zip(objects, chosen, strict=True) if is_chosen], frame))
    return [next(plain) if is_chosen else obj for obj, is_chosen in zip(objects, chosen, strict=True)]


def make_own_mesh(obj: bpy.types.Object) -> None:
    """Shape keys belong to the mesh: an object that shares it would move along. It also has to be in object mode."""
    if obj.mode == "EDIT":
        with bpy.context.temp_override(active_object=obj, object=obj):
            bpy.ops.object.mode_set(mode="OBJECT")
    mesh = obj.data
    if mesh.users - mesh.use_fake_user > 1 or mesh.library is not None or mesh.override_library is not None:
        obj.data = mesh.copy()


def write_keys(
    obj: bpy.types.Object, moves: np.ndarray, name: str, old: Sequence[bpy.types.ShapeKey] = ()
) -> list[bpy.types.ShapeKey]:
    """One key per frame of `moves` [F-1, V, 3], relative to the basis, value 0; `old` ones are used again first."""
    if obj.data.shape_keys is None:
        obj.shape_key_add(name="Basis", from_mix=False)
    reference = obj.data.shape_keys.reference_key
    rest = np.empty(moves.shape[1] * 3, np.float32)
    reference.points.foreach_get("co", rest)
    active = obj.active_shape_key_index
    keys = list(old)
    for index, move in enumerate(moves):
        if index >= len(keys):
            keys.append(obj.shape_key_add(name=f"{name} {index + 1:03d}", from_mix=False))
        keys[index].value = 0.0  # Blender 5 makes it 1
        keys[index].relative_key = reference
        keys[index].points.foreach_set("co", rest + move.ravel())
    obj.active_shape_key_index = active
    obj.show_only_shape_key = False  # a pinned key would hide the motion
    return keys


def animate_keys(
    obj: bpy.types.Object,
    keys: Sequence[bpy.types.ShapeKey],
    timing: Timing,
    name: str,
    shared: bpy.types.Action | None = None,
) -> bpy.types.Action:
    """Writes the hats of a timing into the keys' F-curves, in place of what moved them before."""
    action = _action(obj.data.shape_keys, shared, name)
    fcurves = compat.shape_key_fcurves(obj.data.shape_keys, action)
    for key, points in zip(keys, hats(timing), strict=True):
        key.slider_max = max(1.0, timing.strength)  # Blender clamps animated values to the slider's ends
        _set_fcurve(fcurves, key, points, timing.repeats)
    return action


def _action(shape_keys: bpy.types.Key, shared: bpy.types.Action | None, name: str) -> bpy.types.Action:
    """The action to write to: what the shape keys have (a copy if others use it too), else the shared one."""
    old = shape_keys.animation_data.action if shape_keys.animation_data else None
    if old is None:
        return shared or bpy.data.actions.new(name)
    return old.copy() if old.library is not None or compat.moves_others(shape_keys) else old


def _set_fcurve(fcurves: bpy.types.ActionFCurves, key: bpy.types.ShapeKey, points: Points, repeats: bool) -> None:
    path = key.path_from_id("value")
    stale = fcurves.find(path)  # of this key, or of one of this name that was deleted
    if stale is not None:
        fcurves.remove(stale)
    key.driver_remove("value")
    set_points(fcurves.new(path), points, repeats)


def set_points(fcurve: bpy.types.FCurve, points: Points | np.ndarray, repeats: bool) -> None:
    """Straight lines between points [N, 2] (timeline frame, value), repeated for ever or not."""
    fcurve.keyframe_points.add(len(points))
    fcurve.keyframe_points.foreach_set("co", np.array(points, np.float32).ravel())
    for point in fcurve.keyframe_points:
        point.interpolation = "LINEAR"
    if repeats:
        fcurve.modifiers.new("CYCLES").mode_before = "NONE"
    fcurve.update()


def extend_timeline(scene: bpy.types.Scene, timing: Timing) -> None:
    """Makes the scene's frame range hold the first round of a motion."""
    scene.frame_start = min(scene.frame_start, math.floor(timing.start))
    scene.frame_end = max(scene.frame_end, math.ceil(timing.end))
