"""Saved frames of moving Gaussians, played in Blender: Geometry Nodes read the .ply file of the frame that is shown.

Unlike shape keys of the points, these frames hold turned Gaussians too: all numbers of the files arrive as attributes.
Blender can do that from 4.5 on.
"""

from __future__ import annotations

from pathlib import Path

import bpy

from . import compat, splats
from .shared import protocol
from .timing import Timing

FILE = "frame_{n:04}.ply"  # as `splat_output.frame_path` names them; Blender's own format language


def play(folder: Path, timing: Timing, like: bpy.types.Object, name: str) -> bpy.types.Object:
    """An object that shows the frames of a folder, standing as the object `like` does. Returns it.

    Where the timing repeats, the last frame of the folder is the first one again.

    Raises:
        UserError: this Blender can't read .ply files in nodes.
    """
    if not compat.has_ply_nodes():
        raise protocol.UserError(
            f"Blender {bpy.app.version_string} can't play .ply files.", "Use 4.5 or later, or another program."
        )
    obj = bpy.data.objects.new(name, bpy.data.meshes.new(name))
    for collection in like.users_collection:
        collection.objects.link(obj)
    obj.matrix_world = like.matrix_world
    group = bpy.data.node_groups.new(name, "GeometryNodeTree")
    group.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    _Nodes(group).build(folder, timing)
    obj.modifiers.new(name, "NODES").node_group = group
    return obj


class _Nodes:
    """Writes the node group: path of the frame → file → balls of the Gaussians' size and colour."""

    def __init__(self, group: bpy.types.GeometryNodeTree) -> None:
        self._group = group

    def build(self, folder: Path, timing: Timing) -> None:
        file = self._node("GeometryNodeImportPLY")
        self._link(self._path(folder, timing), file.inputs[0])
        colored = self._node("GeometryNodeStoreNamedAttribute")
        colored.data_type, colored.domain = "FLOAT_COLOR", "POINT"
        colored.inputs["Name"].default_value = splats.COLOR
        self._link(file.outputs[0], colored.inputs["Geometry"])
        self._link(self._color(), colored.inputs["Value"])
        points, paint = self._node("GeometryNodeMeshToPoints"), self._node("GeometryNodeSetMaterial")
        self._link(colored.outputs[0], points.inputs[0])
        self._link(self._radius(), points.inputs["Radius"])
        self._link(points.outputs[0], paint.inputs[0])
        paint.inputs["Material"].default_value = splats.material()
        self._link(paint.outputs[0], self._node("NodeGroupOutput").inputs[0])

    def _path(self, folder: Path, timing: Timing) -> bpy.types.NodeSocket:
        now = self._node("GeometryNodeInputSceneTime").outputs["Frame"]
        place = self._math("DIVIDE", self._math("SUBTRACT", now, timing.start), timing.step)
        place = self._math("MAXIMUM", place, 0.0)
        last = timing.frames - 1.0
        place = self._math("MODULO", place, last) if timing.repeats else self._math("MINIMUM", place, last)
        whole = self._node("FunctionNodeFloatToInt")
        whole.rounding_mode = "FLOOR"
        self._link(self._math("ADD", place, 1.001), whole.inputs[0])  # a frame that is due is not missed by rounding
        text = self._node("FunctionNodeFormatString")
        text.format_items.new("INT", "n")
        text.inputs["Format"].default_value = f"{folder.as_posix()}/".replace("{", "{{").replace("}", "}}") + FILE
        self._link(whole.outputs[0], text.inputs["n"])
        return text.outputs[0]

    def _radius(self) -> bpy.types.NodeSocket:
        """e to the mean of the three scales; none where a Gaussian is hardly seen."""
        total = self._math(
            "ADD", self._math("ADD", self._named("scale_0"), self._named("scale_1")), self._named("scale_2")
        )
        seen = self._math("GREATER_THAN", self._named("opacity"), splats.LOGIT_SEEN)
        return self._math("MULTIPLY", self._math("EXPONENT", self._math("DIVIDE", total, 3.0)), seen)

    def _color(self) -> bpy.types.NodeSocket:
        """What is seen from everywhere, from a screen's colours to light."""
        mixed = self._node("FunctionNodeCombineColor")
        for channel in range(3):
            shown = self._math("ADD", self._math("MULTIPLY", self._named(f"f_dc_{channel}"), splats.SH_C0), 0.5)
            shown = self._math("MINIMUM", self._math("MAXIMUM", shown, 0.0), 1.0)
            self._link(self._math("POWER", shown, 2.2), mixed.inputs[channel])
        return mixed.outputs[0]

    def _named(self, name: str) -> bpy.types.NodeSocket:
        node = self._node("GeometryNodeInputNamedAttribute")
        node.inputs["Name"].default_value = name
        return node.outputs[0]

    def _math(self, operation: str, *values: bpy.types.NodeSocket | float) -> bpy.types.NodeSocket:
        node = self._node("ShaderNodeMath")
        node.operation = operation
        for value, socket in zip(values, node.inputs, strict=False):
            if isinstance(value, int | float):
                socket.default_value = value
            else:
                self._link(value, socket)
        return node.outputs[0]

    def _node(self, kind: str) -> bpy.types.Node:
        node = self._group.nodes.new(kind)
        node.location = (200.0 * (len(self._group.nodes) // 4), -200.0 * (len(self._group.nodes) % 4))
        return node

    def _link(self, source: bpy.types.NodeSocket, target: bpy.types.NodeSocket) -> None:
        self._group.links.new(source, target)
