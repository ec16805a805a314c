"""The colours of places on a mesh, from its materials: an image, a colour attribute, or one colour for all.

What only a renderer can find out (procedural textures, light) is left out; there the material's own colour serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import bpy
import numpy as np

if TYPE_CHECKING:
    from .points import Samples

PLAIN = (0.8, 0.8, 0.8)  # of a face without a material, as Blender's own default


def of(obj: bpy.types.Object, samples: Samples) -> np.ndarray:
    """[N, 3] float64 in 0..1, as on a screen."""
    mesh = obj.data
    slots = np.empty(len(mesh.polygons), np.int32)
    mesh.polygons.foreach_get("material_index", slots)
    slots = np.clip(slots[samples.polygons], 0, max(len(obj.material_slots) - 1, 0))
    colors = np.tile(to_screen(np.array(PLAIN)), (len(slots), 1))
    for index, slot in enumerate(obj.material_slots):
        here = slots == index
        if slot.material is not None and here.any():
            colors[here] = _of_material(slot.material, mesh, samples, here)
    return colors


def to_screen(linear: np.ndarray) -> np.ndarray:
    """Light to what a screen is told (sRGB)."""
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _of_material(material: bpy.types.Material, mesh: bpy.types.Mesh, samples: Samples, here: np.ndarray) -> np.ndarray:
    """[n, 3], or one colour [3], of the points of a material."""
    socket = _color_socket(material)
    if socket is None:
        return to_screen(np.array(material.diffuse_color[:3]))
    source = socket.links[0].from_node if socket.is_linked else None
    if source is None:
        return to_screen(np.array(socket.default_value[:3]))
    if source.bl_idname == "ShaderNodeTexImage" and source.image is not None and mesh.uv_layers.active is not None:
        pixels = _pixels(source.image)
        if pixels is not None:
            return _looked_up(pixels, _uv(mesh, samples, here), source.extension == "REPEAT")
    name = {"ShaderNodeVertexColor": "layer_name", "ShaderNodeAttribute": "attribute_name"}.get(source.bl_idname)
    attribute = mesh.color_attributes.get(getattr(source, name)) if name else None
    if attribute is None and source.bl_idname == "ShaderNodeVertexColor":
        attribute = mesh.color_attributes.active_color
    if attribute is not None:
        return _of_attribute(attribute, samples, here)
    return to_screen(np.array(material.diffuse_color[:3]))


def _color_socket(material: bpy.types.Material) -> bpy.types.NodeSocket | None:
    """The socket of the surface's colour; None where the nodes have none that we know."""
    tree = material.node_tree
    for kind, name in (
        ("ShaderNodeBsdfPrincipled", "Base Color"),
        ("ShaderNodeBsdfDiffuse", "Color"),
        ("ShaderNodeEmission", "Color"),
    ):
        for node in tree.nodes if tree is not None else ():
            if node.bl_idname == kind:
                return node.inputs[name]
    return None


def _pixels(image: bpy.types.Image) -> np.ndarray | None:
    """[H, W, 3] as on a screen, the lowest row first; None where the file is missing."""
    width, height = image.size
    if not width or not height or not image.has_data:
        return None
    flat = np.empty(width * height * image.channels, np.float32)
    image.pixels.foreach_get(flat)
    pixels = flat.reshape(height, width, image.channels)[..., : min(3, image.channels)]
    pixels = np.broadcast_to(pixels, (height, width, 3)) if pixels.shape[2] == 1 else pixels[..., :3]
    return to_screen(pixels.astype(np.float64)) if image.is_float else pixels.astype(np.float64)


def _uv(mesh: bpy.types.Mesh, samples: Samples, here: np.ndarray) -> np.ndarray:
    """[n, 2]."""
    flat = np.empty(2 * len(mesh.loops), np.float32)
    mesh.uv_layers.active.uv.foreach_get("vector", flat)
    corners = flat.reshape(-1, 2)[samples.loops[here]]
    return np.einsum("nck,nc->nk", corners, samples.weights[here])


def _looked_up(pixels: np.ndarray, uv: np.ndarray, repeats: bool) -> np.ndarray:
    """The nearest pixels [n, 3]."""
    height, width = pixels.shape[:2]
    uv = np.nan_to_num(uv) % 1.0 if repeats else np.clip(np.nan_to_num(uv), 0.0, 1.0)
    columns = np.minimum((uv[:, 0] * width).astype(int), width - 1)
    rows = np.minimum((uv[:, 1] * height).astype(int), height - 1)
    return pixels[rows, columns]


def _of_attribute(attribute: bpy.types.Attribute, samples: Samples, here: np.ndarray) -> np.ndarray:
    """[n, 3]; Blender's `color` is light, whatever the attribute is stored as."""
    flat = np.empty(4 * len(attribute.data), np.float32)
    attribute.data.foreach_get("color", flat)
    places = samples.loops if attribute.domain == "CORNER" else samples.corners
    return to_screen(np.einsum("nck,nc->nk", flat.reshape(-1, 4)[places[here], :3], samples.weights[here]))
