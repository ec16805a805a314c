"""What a take has stored: its offsets, in a mesh datablock of its own, and whether they still fit the object."""

from __future__ import annotations

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
