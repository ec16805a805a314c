"""Scenes for the tests that run Blender: ordinary objects, hostile ones, and ways to look at the result."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from animate3d_addon import bake, capture
from backend import protocol

DEFAULT = bake.BakeSettings()
FAST = capture.CaptureSettings(condition_size=32, appearance_size=32, position_samples=1, color_samples=1)


def reset() -> None:
    """An empty file."""
    bpy.ops.wm.read_factory_settings(use_empty=True)


def mesh_object(name: str, vertices: Sequence, faces: Sequence = (), edges: Sequence = ()) -> bpy.types.Object:
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(np.asarray(vertices, float).reshape(-1, 3).tolist(), list(edges), list(faces))
    return add(bpy.data.objects.new(name, mesh))


def add(obj: bpy.types.Object) -> bpy.types.Object:
    bpy.context.scene.collection.objects.link(obj)
    return obj


CUBE = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
CUBE_FACES = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))


def cube(name: str = "Cube", size: float = 1.0, center: Sequence[float] = (0, 0, 0)) -> bpy.types.Object:
    """Half as long as `size` says from the middle to a side."""
    return mesh_object(name, CUBE * size + np.asarray(center, float), CUBE_FACES)


def grid(name: str, columns: int) -> bpy.types.Object:
    """A wavy sheet of columns x columns vertices, size 2."""
    x, y = np.meshgrid(np.linspace(-1, 1, columns), np.linspace(-1, 1, columns), indexing="ij")
    vertices = np.stack([x, y, 0.2 * np.sin(5 * x)], axis=-1).reshape(-1, 3)
    corner = (np.arange(columns - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1)
    faces = np.stack([corner, corner + columns, corner + columns + 1, corner + 1], axis=1)
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(len(vertices))
    mesh.vertices.foreach_set("co", vertices.astype(np.float32).ravel())
    mesh.loops.add(faces.size)
    mesh.loops.foreach_set("vertex_index", faces.astype(np.int32).ravel())
    mesh.polygons.add(len(faces))
    mesh.polygons.foreach_set("loop_start", np.arange(0, faces.size, 4, dtype=np.int32))
    mesh.update(calc_edges=True)
    return add(bpy.data.objects.new(name, mesh))


def set_matrix(obj: bpy.types.Object, matrix: np.ndarray) -> bpy.types.Object:
    """Any matrix [4, 4], sheared and singular ones too, through the inverse of a parent at the origin."""
    parent = add(bpy.data.objects.new(f"Parent of {obj.name}", None))
    obj.parent = parent
    obj.matrix_parent_inverse = Matrix(np.asarray(matrix).tolist())
    bpy.context.view_layer.update()
    return obj


def colored(obj: bpy.types.Object, color: Sequence[float]) -> bpy.types.Object:
    """A material that glows in a flat colour."""
    material = bpy.data.materials.new(obj.name)
    if material.node_tree is None:
        material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    emission = tree.nodes.new("ShaderNodeEmission")
    emission.inputs["Color"].default_value = (*color, 1.0)
    output = tree.nodes.new("ShaderNodeOutputMaterial")
    tree.links.new(emission.outputs[0], output.inputs["Surface"])
    obj.data.materials.append(material)
    return obj


def rigged(name: str = "Rigged") -> bpy.types.Object:
    """A box along z whose upper half a posed bone bends."""
    data = bpy.data.armatures.new(f"{name} bones")
    rig = add(bpy.data.objects.new(f"{name} rig", data))
    bpy.context.view_layer.objects.active = rig
    bpy.ops.object.mode_set(mode="EDIT")
    bone = data.edit_bones.new("bone")
    bone.head, bone.tail = (0, 0, 0), (0, 0, 1)
    bpy.ops.object.mode_set(mode="OBJECT")
    obj = cube(name)
    group = obj.vertex_groups.new(name="bone")
    group.add([i for i in range(8) if CUBE[i, 2] > 0], 1.0, "REPLACE")
    modifier = obj.modifiers.new("Armature", "ARMATURE")
    modifier.object = rig
    obj.parent = rig
    pose = rig.pose.bones["bone"]
    pose.rotation_mode = "XYZ"
    pose.rotation_euler = (0.7, 0.2, 0.4)
    pose.scale = (1.0, 2.0, 0.5)
    bpy.context.view_layer.update()
    return obj


def read_back(path: Path) -> None:
    """The file into an empty scene, animation and all (our own `load` would drop it)."""
    reset()
    bpy.context.scene.render.fps = 24
    readers = {
        ".glb": lambda: bpy.ops.import_scene.gltf(filepath=str(path)),
        ".fbx": lambda: bpy.ops.import_scene.fbx(filepath=str(path)),
        ".usdc": lambda: bpy.ops.wm.usd_import(filepath=str(path)),
        ".abc": lambda: bpy.ops.wm.alembic_import(filepath=str(path), as_background_job=False),
        ".blend": lambda: bpy.ops.wm.open_mainfile(filepath=str(path)),
    }
    readers[path.suffix]()
    for obj in bpy.data.objects if path.suffix == ".abc" else ():
        for modifier in obj.modifiers:  # off in 5.2; see test_blender_round_trips.py
            modifier.use_vertex_interpolation = True


def world_vertices(obj: bpy.types.Object) -> np.ndarray:
    """[V, 3] float64, as the object looks at the current frame."""
    depsgraph = bpy.context.evaluated_depsgraph_get()
    evaluated = obj.evaluated_get(depsgraph)
    mesh = evaluated.to_mesh()
    flat = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", flat)
    matrix = np.array(evaluated.matrix_world, np.float64)
    evaluated.to_mesh_clear()
    return protocol.transform_points(matrix, flat.reshape(-1, 3))


def random_motion(subject: protocol.Subject, frames: int = 4, seed: int = 0) -> protocol.Motion:
    """Every vertex anywhere, up to a fifth of the size."""
    size = np.linalg.norm(subject.to_world[:3, 0])
    offsets = np.random.default_rng(seed).uniform(-0.2, 0.2, (frames, len(subject.vertices), 3)) * size
    offsets[0] = 0.0
    return protocol.Motion(offsets.astype(np.float32))


def subject_of(objects: Sequence[bpy.types.Object], job: Path) -> protocol.Subject:
    return capture.capture(objects, job, FAST)


def bake_and_compare(objects, tmp_path, settings=DEFAULT, tolerance=1e-5):
    """Bakes a random motion of the objects and compares every frame with it, relative to the size."""
    objects = sorted(objects, key=lambda obj: obj.name)
    subject = subject_of(objects, tmp_path)
    rest = protocol.transform_points(subject.to_world, subject.vertices)
    exact_rest = np.concatenate([world_vertices(obj) for obj in objects])
    motion = random_motion(subject)
    baked = bake.bake_shape_keys(objects, subject, motion, settings)
    size = np.linalg.norm(np.ptp(rest, axis=0))
    for index, offsets in enumerate(motion.offsets):
        bpy.context.scene.frame_set(settings.start + index * settings.step)
        look = np.concatenate([world_vertices(each.object) for each in baked])
        assert np.abs(look - (rest + offsets)).max() < tolerance * size, index
        if index == 0:
            np.testing.assert_array_equal(look, exact_rest)
    return baked, subject, motion


def snapshot() -> dict:
    """What must be the same before and after: counts of all datablocks, the scene's settings, selection, window."""
    scene, layer = bpy.context.scene, bpy.context.view_layer
    collections = [
        p.identifier for p in bpy.data.bl_rna.properties if p.type == "COLLECTION" and p.identifier != "all_ids"
    ]
    state = {name: sorted(each.name_full for each in getattr(bpy.data, name)) for name in collections}
    for owner in (scene, scene.render, scene.view_settings, scene.render.image_settings, scene.cycles):
        for prop in owner.bl_rna.properties:
            # `use_nodes` only warns that it will go.
            if prop.type in ("BOOLEAN", "INT", "FLOAT", "STRING", "ENUM") and prop.identifier != "use_nodes":
                state[f"{owner.bl_rna.identifier}.{prop.identifier}"] = str(getattr(owner, prop.identifier))
    state["selected"] = [obj.name for obj in layer.objects if obj.select_get()]
    state["active"] = layer.objects.active.name if layer.objects.active else None
    state["users"] = {each.name_full: each.users for name in collections for each in getattr(bpy.data, name)}
    state["scene"] = scene.name
    state["matrices"] = {obj.name: str(obj.matrix_world) for obj in bpy.data.objects}
    return state


def read_glb(path: Path) -> dict:
    data = path.read_bytes()
    return json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])


def write_glb(path: Path, description: dict | bytes, binary: bytes = b"") -> Path:
    text = description if isinstance(description, bytes) else json.dumps(description).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if binary:
        chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    path.write_bytes(b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks)
    return path


def triangle_gltf(indices: Sequence[int] = (0, 1, 2)) -> tuple[dict, bytes]:
    """A minimal model: its description and its binary part."""
    positions = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)], "<f4").tobytes()
    binary = positions + np.array(indices, "<u2").tobytes()
    description = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "buffers": [{"byteLength": len(binary)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 36},
            {"buffer": 0, "byteOffset": 36, "byteLength": 2 * len(indices)},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]},
            {"bufferView": 1, "componentType": 5123, "count": len(indices), "type": "SCALAR"},
        ],
    }
    return description, binary
