"""Gaussian splats in Blender: a 3DGS .ply file as a mesh of points that keeps all numbers of the file as attributes.

The motion moves the points, by shape keys like any other mesh's. Blender draws them as little balls in the colour that
is seen from everywhere; the numbers are there for splat renderers, and the frames that the backend writes, in which the
Gaussians turn as well, can be saved as .ply files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from . import compat, precheck
from .quiet import quiet
from .shared import protocol

SH_C0 = 0.28209479177387814  # of the constant spherical harmonic
NODES = "Animate3D Splats"
COLOR, RADIUS = "splat_color", "splat_radius"  # attributes that we add, for the picture in Blender alone
LOGIT_SEEN = -2.2  # of an opacity of 0.1: fainter ones would be seen as solid balls


def is_splats(obj: bpy.types.Object) -> bool:
    """Whether an object is a mesh of Gaussians, imported by us or by Blender's own .ply reader."""
    if obj.type != "MESH" or len(obj.data.polygons):
        return False
    return all(name in obj.data.attributes for name in precheck.SPLAT_PROPERTIES)


def load(path: Path, up: str = "z") -> bpy.types.Object:
    """The file as an object that stands upright, in the current collection; `up` says where the file's top is.

    Raises:
        UserError: the file is damaged, or holds no Gaussians.
    """
    if not path.is_file():
        raise protocol.UserError(f"There is no file “{path}”.", "Check the path.")
    if not precheck.is_splats(path):
        precheck.check(path, (".ply",))
        raise protocol.UserError(f"“{path.name}” holds no Gaussian splats.", "Import it with File > Import > PLY.")
    precheck.check_splats(path)
    known = set(bpy.data.objects)
    try:
        with quiet():
            bpy.ops.wm.ply_import(filepath=str(path), import_attributes=True, merge_verts=False)
    except RuntimeError as error:
        raise precheck.damaged(path, "it can't be read") from error
    found = [obj for obj in bpy.data.objects if obj not in known]
    if len(found) != 1 or not is_splats(found[0]) or not len(found[0].data.vertices):
        for obj in found:
            bpy.data.meshes.remove(obj.data)
        raise precheck.damaged(path, "its Gaussians can't be read")
    (obj,) = found
    obj.matrix_world = Matrix(np.linalg.inv(protocol.SplatSource(up).upright).tolist())
    make_visible(obj)
    return obj


def write(obj: bpy.types.Object, path: Path) -> None:
    """The points, unmoved, as a binary 3DGS .ply file with all their numbers. Raises `OSError`."""
    mesh = obj.data
    count = len(mesh.vertices)
    names = [each.name for each in mesh.attributes if each.data_type == "FLOAT" and each.domain == "POINT"]
    names = [name for name in names if name != RADIUS and name.isascii() and " " not in name]
    table = np.empty((count, 3 + len(names)), "<f4")
    table[:, :3] = _values(_rest(mesh), "co", count, 3)
    for column, name in enumerate(names, start=3):
        table[:, column] = _values(mesh.attributes[name].data, "value", count, 1)[:, 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, ("x", "y", "z", *names), table)


def write_table(path: Path, names: Sequence[str], table: np.ndarray) -> None:
    """A binary 3DGS .ply file of Gaussians [N, K], whole or not at all. Raises `OSError`."""
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    lines += [f"property float {name}" for name in names]
    part = path.with_name(f".{path.stem}.part.ply")
    with part.open("wb") as file:
        file.write("\n".join([*lines, "end_header", ""]).encode("ascii"))
        file.write(np.ascontiguousarray(table, "<f4").tobytes())
    os.replace(part, path)


def up_of(obj: bpy.types.Object) -> str:
    """Which of the directions that a file's top can have is nearest to the scene's top."""
    linear = np.array(obj.matrix_world, np.float64)[:3, :3]
    top = np.linalg.pinv(linear)[:, 2]
    return max(protocol.UP_AXES, key=lambda up: float(np.array(protocol.UP_AXES[up])[:, 2] @ top))


def offsets_of_all(job: Path, obj: bpy.types.Object) -> np.ndarray:
    """The motion of a job as [F-1, V, 3] float32 for every point of the object; floaters stay.

    Raises:
        UserError: the object has other points than the job.
    """
    offsets = protocol.Motion.load(job).offsets
    rows = protocol.read_npz(job / "subject" / "rows.npz", ("rows",))["rows"]
    count = _count(protocol.SplatSource.path(job))
    if len(obj.data.vertices) != count:
        raise protocol.UserError(
            f"“{obj.name}” has changed since: it had {count} points and has {len(obj.data.vertices)} now.",
            "Undo the change, or start again.",
        )
    if not np.isfinite(offsets).all() or offsets.shape[1] != len(rows) or (len(rows) and rows.max() >= count):
        raise protocol.UserError("The motion doesn't belong to these points.", "Start the job again.")
    moves = np.zeros((len(offsets) - 1, count, 3), np.float32)
    moves[:, rows] = offsets[1:]
    return moves


def _count(path: Path) -> int:
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"element vertex"):
                return int(line.split()[2])
    raise protocol.UserError("The captured splats in the job folder are damaged.", "Start the job again.")


def _rest(mesh: bpy.types.Mesh) -> Sequence:
    """The points as they are without any motion."""
    keys = mesh.shape_keys
    return keys.reference_key.points if keys is not None else mesh.vertices


def _values(collection: Sequence, name: str, count: int, width: int) -> np.ndarray:
    flat = np.empty(count * width, np.float32)
    collection.foreach_get(name, flat)
    return flat.reshape(count, width)


def make_visible(obj: bpy.types.Object) -> None:
    """A colour and a radius for each point, and nodes that make balls of them."""
    mesh = obj.data
    count = len(mesh.vertices)

    def column(*names: str) -> np.ndarray:
        return np.concatenate([_values(mesh.attributes[name].data, "value", count, 1) for name in names], axis=1)

    display = np.clip(0.5 + SH_C0 * np.nan_to_num(column("f_dc_0", "f_dc_1", "f_dc_2")), 0.0, 1.0)
    linear = np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    colors = np.concatenate([linear, np.ones((count, 1))], axis=1).astype(np.float32)
    seen = np.nan_to_num(column("opacity")) > LOGIT_SEEN
    radii = np.exp(np.clip(np.nan_to_num(column("scale_0", "scale_1", "scale_2")), -30.0, 30.0).mean(axis=1))
    mesh.attributes.new(COLOR, "FLOAT_COLOR", "POINT").data.foreach_set("color", colors.ravel())
    radius = (radii * seen[:, 0]).astype(np.float32)
    mesh.attributes.new(RADIUS, "FLOAT", "POINT").data.foreach_set("value", radius)
    obj.modifiers.new(NODES, "NODES").node_group = bpy.data.node_groups.get(NODES) or _nodes()


def _nodes() -> bpy.types.GeometryNodeTree:
    group = bpy.data.node_groups.new(NODES, "GeometryNodeTree")
    group.interface.new_socket("Geometry", in_out="INPUT", socket_type="NodeSocketGeometry")
    group.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    first, last = group.nodes.new("NodeGroupInput"), group.nodes.new("NodeGroupOutput")
    points, paint = group.nodes.new("GeometryNodeMeshToPoints"), group.nodes.new("GeometryNodeSetMaterial")
    radius, both = group.nodes.new("GeometryNodeInputNamedAttribute"), group.nodes.new("GeometryNodeJoinGeometry")
    radius.inputs["Name"].default_value = RADIUS
    paint.inputs["Material"].default_value = material()
    for source, target in (
        (first.outputs[0], points.inputs[0]),
        (radius.outputs[0], points.inputs["Radius"]),
        (points.outputs[0], paint.inputs[0]),
        (first.outputs[0], both.inputs[0]),  # nobody sees vertices, but exporters do
        (paint.outputs[0], both.inputs[0]),
        (both.outputs[0], last.inputs[0]),
    ):
        group.links.new(source, target)
    for place, node in enumerate((first, radius, points, paint, both, last)):
        node.location.x = 200.0 * place
    return group


def material() -> bpy.types.Material:
    """Glows in the points' colours: splats hold the light that they were photographed in."""
    known = bpy.data.materials.get(NODES)
    if known is not None:
        return known
    made = bpy.data.materials.new(NODES)
    tree = compat.node_tree(made)
    color, glow = tree.nodes.new("ShaderNodeAttribute"), tree.nodes.new("ShaderNodeEmission")
    output = tree.nodes.new("ShaderNodeOutputMaterial")
    color.attribute_name = COLOR
    tree.links.new(color.outputs["Color"], glow.inputs["Color"])
    tree.links.new(glow.outputs[0], output.inputs["Surface"])
    return made
