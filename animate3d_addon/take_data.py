"""What a take has stored, whether it still fits its object, and which objects belong to it."""

from __future__ import annotations

from collections.abc import Iterator

import bpy
import numpy as np

from .properties import Take
from .shared import protocol


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


def offsets(take: Take, obj: bpy.types.Object) -> np.ndarray:
    """The offsets [F-1, V, 3] float32. Raises `UserError`."""
    error = fault(obj)
    if error is not None:
        raise error
    flat = np.empty(len(take.offsets.vertices) * 3, np.float32)
    take.offsets.attributes["position"].data.foreach_get("vector", flat)
    return flat.reshape(take.frames - 1, -1, 3)


def store(offsets: np.ndarray, name: str) -> bpy.types.Mesh:
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(offsets.shape[0] * offsets.shape[1])
    mesh.attributes["position"].data.foreach_set("vector", np.ascontiguousarray(offsets, np.float32).ravel())
    return mesh


def together(obj: bpy.types.Object) -> list[bpy.types.Object]:
    """The object and those that were animated with it in its active take, in the order of the subject."""
    found = sorted(members(obj.animate3d.active), key=lambda found: found[0].animate3d.takes[found[1]].member)
    return [each for each, _ in found]


def parts(obj: bpy.types.Object) -> list[bpy.types.Object]:
    """All objects that the active take of an object shows: surfaces, their armature, or their points instead."""
    found = together(obj)
    shown = [each.animate3d.active for each in found]
    if shown[0].output == "POINTS":
        return [take.cloud for take in shown]
    rigs = {take.rig for take in shown if take.output == "RIG"}
    return [*found, *rigs]


def of(obj: bpy.types.Object | None) -> bpy.types.Object | None:
    """The object whose takes are meant where this one is selected: of a cloud of points, the mesh it is of."""
    return obj.animate3d.owner if obj is not None and obj.animate3d.owner is not None else obj


def members(take: Take) -> Iterator[tuple[bpy.types.Object, int]]:
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
