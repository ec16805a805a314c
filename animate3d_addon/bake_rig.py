"""A motion to an armature: bones with keyed locations and rotations, and a true skin on all objects of the subject.

The armature stands at the root bone and has the objects' common parent; objects that had that parent become its
children, and look as before. Weights live in vertex groups named like the bones; vertex groups, shape keys and
modifiers that were there stay. Keys lie at the motion's frames and are LINEAR: shape keys blend in straight lines, and
measured against those, Bezier curves are off by more.

An object that already hangs on an armature is refused, or made plain first where modifiers are to be applied; then
objects that are squeezed or sheared by their transforms also get them into their meshes, because a skeleton below such
transforms comes back right from no file but a .blend.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import bpy
import numpy as np
from mathutils import Matrix, Quaternion

from . import bake, compat, files, meshes
from .bake import BakeSettings
from .shared import protocol
from .temporary import temporary_scene
from .timing import Timing

SHORTEST_BONE = 1e-3  # in the armature's units: Blender deletes bones that have no length
LEVELS = 2**14  # steps of a weight: vertices of equal weight enter a vertex group in one call
DEFAULT = BakeSettings()
STILL = 1e-7  # a channel that never moves by more gets no keys


def bake_rig(
    objects: Sequence[bpy.types.Object],
    subject: protocol.Subject,
    rig: protocol.Rig,
    settings: BakeSettings = DEFAULT,
    timing: Timing | None = None,
) -> bpy.types.Object:
    """Puts the motion onto the objects that were captured as an armature, which is returned; its objects are skinned.

    `objects` may be in any order and may hold more than was captured. `skinned_by` lists what hangs on the armature.
    Without `timing` the motion plays once, as the settings say. Raises `UserError` before anything is changed.
    """
    chosen, since = check(objects, subject, rig, settings)
    if settings.apply_modifiers:
        chosen = bake.make_plain(chosen, _rest_frame(settings))
        _unshear(chosen)
    rig = with_free_names(rig, chosen)
    armature = _armature(chosen, rig, settings.name)
    armature.matrix_world = Matrix((since @ np.array(armature.matrix_world)).tolist())
    timing = timing or Timing(len(rig.quats), start=settings.start, step=settings.step)
    animate(armature, rig, timing, settings.name)
    for obj, bones, weights in zip(chosen, *_per_object(subject, rig), strict=True):
        bake.make_own_mesh(obj)
        _weigh(obj, rig.names, bones, weights)
        hang(obj, armature, settings.name)
    _bind(armature, chosen)
    bake.extend_timeline(bpy.context.scene, timing)
    return armature


def skinned_by(armature: bpy.types.Object) -> list[bpy.types.Object]:
    """The objects that an armature deforms, sorted by name."""
    return sorted(
        (obj for obj in bpy.data.objects if any(getattr(m, "object", None) == armature for m in obj.modifiers)),
        key=lambda obj: obj.name,
    )


def check(
    objects: Sequence[bpy.types.Object], subject: protocol.Subject, rig: protocol.Rig, settings: BakeSettings
) -> tuple[list[bpy.types.Object], np.ndarray]:
    """The subject's objects in its order, and where all of them have gone [4, 4] since. Raises `UserError`."""
    chosen = bake.captured(objects, subject)
    if len(rig.bones) != sum(subject.object_counts):
        raise protocol.UserError("The rig doesn't belong to these objects.", "Start the job again.")
    for obj, count in zip(chosen, subject.object_counts, strict=True):
        bake.check_object(obj, settings)
        if abs(np.linalg.det(np.array(obj.matrix_world, np.float64)[:3, :3])) < 1e-30:
            raise protocol.UserError(f"“{obj.name}” is squashed flat by its scale.", "Apply its scale, or use keys.")
        if settings.apply_modifiers:
            continue
        check_free(obj)
        if len(obj.data.vertices) != count:
            raise protocol.UserError(
                f"“{obj.name}” has another number of vertices than when it was looked at.",
                "Apply its modifiers, or start again.",
            )
    return chosen, _moved_since(chosen, subject, settings)


def check_free(obj: bpy.types.Object, ours: Collection[str] = ()) -> None:
    """Raises `UserError` where the object has an armature already, other than by modifiers of the names `ours`."""
    armatures = [m for m in obj.modifiers if m.type == "ARMATURE" and m.show_viewport and m.name not in ours]
    if armatures or obj.parent_type == "ARMATURE":
        raise protocol.UserError(
            f"“{obj.name}” already hangs on an armature.", "Use shape keys, or apply its armature first."
        )


def _moved_since(objects: Sequence[bpy.types.Object], subject: protocol.Subject, settings: BakeSettings) -> np.ndarray:
    """What has moved all objects [4, 4] since they were captured. Raises `UserError` where a skeleton can't follow."""
    places = bake.captured_places(subject, settings)
    if not any(places):
        return np.eye(4)
    with temporary_scene() as scene:
        pieces = meshes.evaluate(objects, scene, _rest_frame(settings))
        since = [place.since(piece) for place, piece in zip(places, pieces, strict=True) if place is not None]
    if not all(np.allclose(other, since[0], atol=1e-4 * np.abs(since[0]).max()) for other in since):
        raise protocol.UserError("The objects were moved against each other since.", "Start again, or use shape keys.")
    if not _is_similarity(since[0][:3, :3]):
        raise protocol.UserError("The objects were squeezed or mirrored since.", "Start again, or use shape keys.")
    return since[0]


def _rest_frame(settings: BakeSettings) -> float:
    return bpy.context.scene.frame_current_final if settings.rest_frame is None else settings.rest_frame


def with_free_names(rig: protocol.Rig, objects: Sequence[bpy.types.Object]) -> protocol.Rig:
    """The rig with bone names that no vertex group has yet: a group of a bone's name would hang on it."""
    taken = {group.name for obj in objects for group in obj.vertex_groups}
    found = []
    for name in rig.names:
        while name in taken:
            stem, dot, side = name.partition(".")
            name = f"{stem}_{dot}{side}"
        taken.add(name)
        found.append(name)
    return replace(rig, names=tuple(found))


def _per_object(subject: protocol.Subject, rig: protocol.Rig) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Bones and weights [V, K] of each object."""
    starts = np.cumsum(subject.object_counts)[:-1]
    return np.split(rig.bones, starts), np.split(rig.weights, starts)


def _armature(objects: Sequence[bpy.types.Object], rig: protocol.Rig, name: str) -> bpy.types.Object:
    """The armature at the root bone's head, in rest pose."""
    data = bpy.data.armatures.new(f"{name} rig")
    armature = bpy.data.objects.new(data.name, data)
    layer = bpy.context.view_layer
    link_beside(armature, objects[0])
    armature.location = rig.heads[0]
    armature.scale = (_scale(rig),) * 3
    armature.show_in_front = True
    heads, tails = ((ends - rig.heads[0]) / _scale(rig) for ends in (rig.heads, rig.tails))
    active = layer.objects.active
    layer.objects.active = armature
    bpy.ops.object.mode_set(mode="EDIT")
    bones = []
    for bone_name, head, tail, parent in zip(rig.names, heads, tails, rig.parents, strict=True):
        bone = data.edit_bones.new(bone_name)
        bone.head, bone.tail = head, tail
        bone.parent = bones[parent] if parent >= 0 else None
        bones.append(bone)
    bpy.ops.object.mode_set(mode="OBJECT")
    layer.objects.active = active
    layer.update()
    return armature


def _scale(rig: protocol.Rig) -> float:
    """World units to one of the armature's: 1 unless the bones would be too short."""
    return min(float(np.linalg.norm(rig.tails - rig.heads, axis=1).min()) / SHORTEST_BONE, 1.0)


def link_beside(armature: bpy.types.Object, obj: bpy.types.Object) -> None:
    """Into a collection of the object, or where that isn't in the view layer, into the scene's."""
    for collection in (*obj.users_collection, bpy.context.scene.collection):
        collection.objects.link(armature)
        bpy.context.view_layer.update()
        if armature.name in bpy.context.view_layer.objects:
            return
        collection.objects.unlink(armature)


def animate(armature: bpy.types.Object, rig: protocol.Rig, timing: Timing, name: str) -> None:
    """Keys of location and rotation for each bone, in place of those that it had; other channels stay at rest.

    Bones that the user has removed, or has given another name, are left alone.
    """
    here = [index for index, bone in enumerate(rig.names) if bone in armature.pose.bones]
    rest = np.array([armature.data.bones[rig.names[index]].matrix_local for index in here], np.float64)
    locations, rotations = _channels(rig, rest, here, timing.strength)
    old = armature.animation_data.action if armature.animation_data else None
    fcurves = compat.object_fcurves(armature, old or bpy.data.actions.new(name))
    times = [timing.start + place * timing.step for place in range(len(timing.order))]
    for place, index in enumerate(here):
        pose = armature.pose.bones[rig.names[index]]
        pose.rotation_mode = "QUATERNION"
        for path, values in (("location", locations[:, place]), ("rotation_quaternion", rotations[:, place])):
            for axis in range(values.shape[1]):
                stale = fcurves.find(pose.path_from_id(path), index=axis)
                if stale is not None:
                    fcurves.remove(stale)
                if np.ptp(values, axis=0).max() > STILL:
                    points = np.stack([times, values[timing.order, axis]], axis=1)
                    bake.set_points(fcurves.new(pose.path_from_id(path), index=axis), points, timing.repeats)
            if np.ptp(values, axis=0).max() <= STILL:  # it may have moved before
                setattr(pose, path, values[0])


def _channels(
    rig: protocol.Rig, rest: np.ndarray, here: Sequence[int], strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Locations [F, B, 3] and quaternions [F, B, 4] of the bones `here`, relative to parent and rest.

    `rest` are their matrices [B, 4, 4] in the armature. The strength scales distances and angles.
    """
    place, scale = rig.heads[0], _scale(rig)
    frames, count = rig.quats.shape[:2]
    heads = (rig.heads - np.array(place, np.float64)) / scale
    moves = np.tile(np.eye(4), (frames, count, 1, 1))  # of the bone's space, in the armature's
    turns = [np.array(Quaternion(q).to_matrix()) for q in rig.quats.reshape(-1, 4)]
    moves[..., :3, :3] = np.array(turns, np.float64).reshape(frames, count, 3, 3)
    shift = heads + rig.translations / scale - (moves[..., :3, :3] @ heads[..., None])[..., 0]
    moves[..., :3, 3] = shift
    above = np.where((rig.parents < 0)[:, None, None], np.eye(4), np.linalg.inv(moves[:, np.maximum(rig.parents, 0)]))
    own = np.linalg.inv(rest) @ (above @ moves)[:, here] @ rest
    quats = np.array([Matrix(m.tolist()).to_quaternion() for m in own[..., :3, :3].reshape(-1, 3, 3)])
    quats = quats.reshape(frames, len(here), 4)
    flips = np.where((quats[1:] * quats[:-1]).sum(axis=-1) < 0.0, -1.0, 1.0)
    quats[1:] *= np.cumprod(flips, axis=0)[..., None]  # the short way round
    return strength * own[..., :3, 3], quats if strength == 1.0 else _scaled(quats, strength)


def _scaled(quats: np.ndarray, strength: float) -> np.ndarray:
    """Quaternions [..., 4] wxyz of the same axes and so many times the angles."""
    sine = np.linalg.norm(quats[..., 1:], axis=-1, keepdims=True)
    half = strength * np.arctan2(sine, quats[..., :1])
    axis = quats[..., 1:] / np.maximum(sine, 1e-12)
    return np.concatenate([np.cos(half), np.sin(half) * axis], axis=-1)


def _weigh(obj: bpy.types.Object, names: Sequence[str], bones: np.ndarray, weights: np.ndarray) -> None:
    """Vertex groups from bones and weights [V, K]."""
    for bone in np.unique(bones[weights > 0]):
        group = obj.vertex_groups.new(name=names[bone])
        vertex, column = np.nonzero((bones == bone) & (weights > 0))
        level = np.maximum(np.round(weights[vertex, column] * LEVELS), 1).astype(np.int64)
        order = np.argsort(level, kind="stable")
        levels, starts = np.unique(level[order], return_index=True)
        for value, members in zip(levels, np.split(vertex[order], starts[1:]), strict=True):
            group.add(members.tolist(), float(value) / LEVELS, "REPLACE")


def hang(obj: bpy.types.Object, armature: bpy.types.Object, name: str) -> None:
    """The modifier, as the last one: it moves the evaluated look."""
    modifier = obj.modifiers.new(name, "ARMATURE")
    modifier.object = armature
    modifier.use_vertex_groups, modifier.use_bone_envelopes = True, False


def _bind(armature: bpy.types.Object, objects: Sequence[bpy.types.Object]) -> None:
    """Gives the armature the objects' common parent, and makes it theirs, so that all go together and look as before.

    Not below a parent that squeezes or shears: a skeleton can't, and no file format could hold it.
    """
    bpy.context.view_layer.update()
    parents = {obj.parent for obj in objects if obj.parent not in objects}
    parent = parents.pop() if len(parents) == 1 else None
    above = np.eye(4) if parent is None else np.array(parent.matrix_world, np.float64)
    if parent is not None and any(obj.parent == parent and obj.parent_type != "OBJECT" for obj in objects):
        return
    if not _is_similarity(above[:3, :3]):
        return
    if parent is not None:
        armature.parent = parent
        armature.matrix_parent_inverse = Matrix(np.linalg.inv(above).tolist())
    for obj in objects:
        bind(armature, obj)


def bind(armature: bpy.types.Object, obj: bpy.types.Object) -> None:
    """Makes the armature the parent of an object that has the armature's own parent; it looks as before."""
    if obj.parent != armature.parent or obj.parent_type != "OBJECT":
        return
    above, place = _parent_matrix(armature), np.array(armature.matrix_world, np.float64)
    before = np.eye(4) if obj.parent is None else above @ np.array(obj.matrix_parent_inverse, np.float64)
    obj.parent = armature
    obj.matrix_parent_inverse = Matrix((np.linalg.inv(place) @ before).tolist())


def unbind(armature: bpy.types.Object, obj: bpy.types.Object) -> None:
    """Gives an object the armature's parent instead of the armature; it looks as before."""
    if obj.parent != armature:
        return
    above, place = _parent_matrix(armature), np.array(armature.matrix_world, np.float64)
    inverse = np.array(obj.matrix_parent_inverse, np.float64)
    matrix = obj.matrix_world.copy()
    obj.parent = armature.parent
    inverse = np.linalg.inv(above) @ place @ inverse
    if obj.parent is not None:
        obj.matrix_parent_inverse = Matrix(inverse.tolist())
    elif np.allclose(inverse, np.eye(4), atol=1e-5):  # as it was before it was bound: its own channels say where
        obj.matrix_parent_inverse = Matrix.Identity(4)
    else:
        obj.matrix_world = matrix


def _parent_matrix(armature: bpy.types.Object) -> np.ndarray:
    return np.eye(4) if armature.parent is None else np.array(armature.parent.matrix_world, np.float64)


def _unshear(objects: Sequence[bpy.types.Object]) -> None:
    """Puts transforms that squeeze, mirror or shear into the meshes; the objects stay where they are, without parents.

    All of them go where one of them does, because they may be each other's parents.
    """
    bpy.context.view_layer.update()
    places = [np.array(obj.matrix_world, np.float64) for obj in objects]
    parents = [np.array(obj.parent.matrix_world, np.float64) for obj in objects if obj.parent is not None]
    if all(_is_similarity(matrix[:3, :3]) for matrix in (*places, *parents)):
        return
    for obj, matrix in zip(objects, places, strict=True):
        bake.make_own_mesh(obj)
        linear = np.eye(4)
        linear[:3, :3] = matrix[:3, :3]
        obj.data.transform(Matrix(linear.tolist()), shape_keys=True)
        if np.linalg.det(linear) < 0.0:
            obj.data.flip_normals()
        files.place(obj, np.block([[np.eye(3), matrix[:3, 3:]], [np.zeros((1, 3)), 1.0]]))


def _is_similarity(linear: np.ndarray) -> bool:
    """Whether a matrix [3, 3] turns and scales evenly, and nothing else."""
    size = np.cbrt(np.linalg.det(linear))
    return bool(size > 1e-12 and np.allclose(linear @ linear.T, size**2 * np.eye(3), atol=1e-4 * size**2))
