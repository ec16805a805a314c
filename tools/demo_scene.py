"""The object of `make demo`: a cactus in a pot, made of Blender's own primitives."""

from __future__ import annotations

from pathlib import Path

import bpy  # isort: skip  (the next two exist once it is imported)
import bmesh
from mathutils import Matrix

COLORS = {  # linear RGB
    "terracotta": (0.62, 0.20, 0.08),
    "soil": (0.07, 0.04, 0.02),
    "cactus": (0.08, 0.36, 0.10),
    "petal": (0.90, 0.16, 0.35),
    "eye": (0.01, 0.01, 0.01),
}
# Material, primitive, place, size: "ball" has three radii, "cone" a bottom radius, a top radius and a height.
# The face looks along -y, Blender's front.
PARTS = (
    ("terracotta", "cone", (0.0, 0.0, 0.25), (0.30, 0.42, 0.50)),
    ("terracotta", "cone", (0.0, 0.0, 0.53), (0.47, 0.47, 0.12)),
    ("soil", "cone", (0.0, 0.0, 0.585), (0.41, 0.41, 0.02)),
    ("cactus", "ball", (0.0, 0.0, 1.22), (0.31, 0.31, 0.74)),
    ("cactus", "ball", (0.40, 0.0, 1.12), (0.22, 0.11, 0.11)),
    ("cactus", "ball", (0.53, 0.0, 1.32), (0.11, 0.11, 0.29)),
    ("cactus", "ball", (-0.40, 0.0, 1.30), (0.22, 0.11, 0.11)),
    ("cactus", "ball", (-0.53, 0.0, 1.46), (0.11, 0.11, 0.25)),
    ("petal", "ball", (0.0, 0.0, 2.00), (0.20, 0.20, 0.07)),
    ("petal", "ball", (0.0, 0.0, 2.04), (0.09, 0.09, 0.09)),
    ("eye", "ball", (0.11, -0.285, 1.42), (0.04, 0.03, 0.055)),
    ("eye", "ball", (-0.11, -0.285, 1.42), (0.04, 0.03, 0.055)),
)


def make_cactus(path: Path) -> None:
    """Writes the cactus as a .glb file."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    mesh = bpy.data.meshes.new("Cactus")
    for name, color in COLORS.items():
        mesh.materials.append(_material(name, color))
    build = bmesh.new()
    for material, kind, place, size in PARTS:
        known = set(build.faces)
        _add_part(build, kind, place, size)
        for face in build.faces:
            if face not in known:
                face.material_index = list(COLORS).index(material)
                face.smooth = kind == "ball"
    build.to_mesh(mesh)
    build.free()
    bpy.context.scene.collection.objects.link(bpy.data.objects.new("Cactus", mesh))
    path.parent.mkdir(parents=True, exist_ok=True)
    bpy.ops.export_scene.gltf(filepath=str(path))


def _add_part(
    build: bmesh.types.BMesh, kind: str, place: tuple[float, float, float], size: tuple[float, float, float]
) -> None:
    move = Matrix.Translation(place)
    if kind == "ball":
        stretch = Matrix.Diagonal((*size, 1.0))
        bmesh.ops.create_uvsphere(build, u_segments=24, v_segments=16, radius=1.0, matrix=move @ stretch)
    else:
        bottom, top, height = size
        bmesh.ops.create_cone(
            build, cap_ends=True, segments=32, radius1=bottom, radius2=top, depth=height, matrix=move
        )  # fmt: skip


def _material(name: str, color: tuple[float, float, float]) -> bpy.types.Material:
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    shader = material.node_tree.nodes["Principled BSDF"]
    shader.inputs["Base Color"].default_value = (*color, 1.0)
    shader.inputs["Roughness"].default_value = 0.7
    return material
