"""Takes that are clouds of points: a point object beside the mesh, which shows as its bounds meanwhile.

The points have shape keys of their own, so that loops, strength, half-frames, the NLA and every exporter work as for a
mesh. The cloud of a take that isn't shown stays in the file, outside of every collection.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import bpy
import numpy as np

from . import bake, bake_rig, compat, meshes, points, splats
from .properties import Take
from .shared import protocol
from .temporary import temporary_scene

NAME = bake.BakeSettings().name
HIDDEN = "BOUNDS"  # how the mesh is drawn while its points are shown: it can still be selected


class Stiff(protocol.UserError):
    """Something deforms the object that its points would not follow: applied to a copy, or keys instead, it works."""


def check_free(obj: bpy.types.Object, ours: Collection[str] = ()) -> None:
    """Raises `UserError` where an object can't be made of points, `Stiff` where its points would not go along.

    Modifiers of the names `ours` are no obstacle.
    """
    if splats.is_splats(obj):
        raise protocol.UserError(f"“{obj.name}” is made of points already.", "Choose “Shape Keys” as the output.")
    others = [modifier for modifier in obj.modifiers if modifier.show_viewport and modifier.name not in ours]
    if others or (obj.parent is not None and obj.parent_type in meshes.DEFORMING_PARENTS):
        raise Stiff(
            f"“{obj.name}” has modifiers or a rig, which points would not follow.",
            "Animate a copy that has them applied, or choose “Shape Keys” as the output.",
        )


def make(obj: bpy.types.Object, take: Take, moves: np.ndarray) -> None:
    """The cloud of a take whose vertices are moved by [F-1, V, 3]; nothing else moves the object meanwhile."""
    rest = _rest(obj)
    cloud, samples = points.make(obj, rest, take.count, f"{obj.name} points")
    cloud.parent = obj
    cloud.animate3d.owner = obj
    bake.write_keys(cloud, samples.at(moves), NAME)
    take.cloud = cloud
    retime(take)


def _rest(obj: bpy.types.Object) -> np.ndarray:
    """[V, 3] float64, local space: where the vertices are, whatever other shape keys do."""
    with temporary_scene() as scene:
        (piece,) = meshes.evaluate([obj], scene, bpy.context.scene.frame_current_final)
        return piece.vertices


def save_frames(obj: bpy.types.Object, take: Take, moves: np.ndarray, folder: Path) -> list[Path]:
    """One round of the take as complete 3DGS files, `frame_0001.ply` and so on. Raises `UserError`."""
    rest, timing = _rest(obj), take.timing
    samples = points.sample(obj.data, rest, take.count)
    try:
        return points.write_frames(folder, obj, samples, rest, timing.strength * moves, timing.order)
    except OSError as error:
        raise protocol.UserError(f"The files can't be written ({error.strerror}).", "Choose another folder.") from error


def show(obj: bpy.types.Object, take: Take) -> None:
    """The points instead of the surface."""
    if not take.cloud.users_collection:
        bake_rig.link_beside(take.cloud, obj)
    own = obj.animate3d
    if not own.surface:
        own.surface, own.surface_hidden = obj.display_type, obj.hide_render
    obj.display_type, obj.hide_render = HIDDEN, True


def put_aside(obj: bpy.types.Object, take: Take) -> None:
    """Takes the points of a take out of the scene."""
    if take.cloud is not None:
        for collection in take.cloud.users_collection:
            collection.objects.unlink(take.cloud)


def show_surface(obj: bpy.types.Object) -> None:
    """The surface as it was drawn before its points were shown."""
    own = obj.animate3d
    if own.surface:
        obj.display_type, obj.hide_render, own.surface = own.surface, own.surface_hidden, ""


def keys(take: Take) -> list[bpy.types.ShapeKey]:
    """What moves the points, in the order of the motion."""
    blocks = take.cloud.data.shape_keys.key_blocks if take.cloud is not None else ()
    return list(blocks)[1:]


def retime(take: Take) -> None:
    """Writes the keys' animation anew, as the take is timed now."""
    if take.cloud is not None:
        bake.animate_keys(take.cloud, keys(take), take.timing, NAME)


def duplicate(cloud: bpy.types.Object, owner: bpy.types.Object) -> bpy.types.Object:
    """The same points for another take or another object, in no collection, with an action of their own."""
    copy = cloud.copy()
    copy.data = cloud.data.copy()
    copy.parent = copy.animate3d.owner = owner
    compat.own_action(copy.data.shape_keys)
    return copy


def push_to_nla(take: Take) -> None:
    """The points become the user's, with a strip on a track; no take knows them any more."""
    cloud, name = take.cloud, take.name
    shape_keys = cloud.data.shape_keys
    action = shape_keys.animation_data.action
    action.name = name
    compat.push_down(shape_keys, action, name, take.timing.start)
    shape_keys.animation_data.action = None
    cloud.animate3d.owner, take.cloud = None, None


def remove(obj: bpy.types.Object, take: Take) -> None:
    """Takes the points of a take back."""
    cloud = take.cloud
    if cloud is None:
        return
    put_aside(obj, take)
    take.cloud = None
    data = cloud.data
    action = data.shape_keys.animation_data.action if data.shape_keys and data.shape_keys.animation_data else None
    bpy.data.objects.remove(cloud)
    for datablock in (data, action):
        if datablock is not None and datablock.users == 0:
            bpy.data.batch_remove([datablock])
