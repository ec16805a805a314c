"""Geometry and objects that nobody plans for: a right result or one plain sentence, and nothing damaged."""

from __future__ import annotations

import time

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402

from animate3d_addon import bake  # noqa: E402
from backend import protocol  # noqa: E402

TRIANGLE = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]


@pytest.fixture(autouse=True)
def empty_file():
    scenes.reset()


def refused(tmp_path, words: str) -> None:
    before = scenes.snapshot()
    with pytest.raises(protocol.UserError, match=words) as caught:
        scenes.subject_of(bpy.data.objects[:], tmp_path)
    assert scenes.snapshot() == before
    assert "\n" not in caught.value.message and caught.value.hint
    assert not (tmp_path / "subject").exists()


@pytest.mark.parametrize(
    ("vertices", "edges", "faces", "words"),
    [
        ([], [], [], "no vertex"),
        ([(1, 2, 3)], [], [], "no face"),
        ([(1, 2, 3)] * 3, [], [(0, 1, 2)], "no size"),
        (TRIANGLE, [(0, 1), (1, 2)], [], "no face"),
        ([*TRIANGLE, (np.nan, 0, 0)], [], [(0, 1, 2)], "1 of the 4 vertices of “Odd” have no valid position"),
        ([*TRIANGLE, (np.inf, 0, -np.inf)], [], [(0, 1, 3)], "1 of the 4 vertices"),
    ],
    ids=["no vertex", "one vertex", "one point", "edges only", "nan", "inf"],
)
def test_nothing_that_could_move(tmp_path, vertices, edges, faces, words):
    scenes.mesh_object("Odd", vertices, faces, edges)
    refused(tmp_path, words)


def shards(count: int):
    rng = np.random.default_rng(0)
    vertices = (rng.uniform(-5, 5, (count, 1, 3)) + rng.uniform(-0.2, 0.2, (count, 3, 3))).reshape(-1, 3)
    return vertices, np.arange(3 * count).reshape(-1, 3).tolist(), []


ODD_MESHES = {
    "flat triangle": (TRIANGLE, [(0, 1, 2)], []),
    "loose parts": ([*TRIANGLE, (5, 5, 5), (6, 6, 6), (7, 7, 7)], [(0, 1, 2)], [(3, 4)]),
    "500 shards": shards(500),
    "concave n-gon": ([(0, 0, 0), (2, 0, 0), (2, 0, 2), (1, 0, 0.2), (0, 0, 2)], [(0, 1, 2, 3, 4)], []),
    "zero-area faces": ([*TRIANGLE, (0, 0, 0), (0.5, 0, 0)], [(0, 1, 2), (0, 1, 4), (0, 3, 1)], []),
    "bow-tie": ([(0, 0, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1)], [(0, 1, 2, 3)], []),
    "three faces at an edge": ([*TRIANGLE, (0, 0, 1), (0, -1, 0)], [(0, 1, 2), (0, 1, 3), (0, 1, 4)], []),
    "flipped normals": (scenes.CUBE, [face[::-1] for face in scenes.CUBE_FACES], []),
}


@pytest.mark.parametrize("name", ODD_MESHES)
def test_odd_meshes_move_exactly(tmp_path, name):
    vertices, faces, edges = ODD_MESHES[name]
    obj = scenes.mesh_object("Odd", vertices, faces, edges)
    scenes.bake_and_compare([obj], tmp_path)


def test_polygons_with_a_vertex_twice_and_other_invalid_ones(tmp_path):
    obj = scenes.mesh_object("Odd", [*TRIANGLE, (0, 0, 1)], [(0, 1, 2), (0, 1, 1, 3)])
    assert len(scenes.subject_of([obj], tmp_path).vertices) == 4


def test_a_million_vertices(tmp_path):
    obj = scenes.grid("Sheet", 1000)
    start = time.process_time()  # of all threads; says the same on a busy machine
    subject = scenes.subject_of([obj], tmp_path)
    assert len(subject.vertices) == 1_000_000 and subject.weld.max() == 999_999
    offsets = np.zeros((2, 1_000_000, 3), np.float32)
    offsets[1, :, 2] = 1.0
    bake.bake_shape_keys([obj], subject, protocol.Motion(offsets))
    bpy.context.scene.frame_set(4)
    assert scenes.world_vertices(obj)[:, 2].mean() == pytest.approx(1.0, abs=0.1)
    assert time.process_time() - start < 60.0


def test_300_objects(tmp_path):
    objects = [scenes.cube(f"Part {i:03d}", 0.3, (i % 20, i // 20, 0)) for i in range(300)]
    start = time.process_time()
    baked, *_ = scenes.bake_and_compare(objects, tmp_path)
    assert len(baked) == 300 and time.process_time() - start < 60.0


def test_an_empty_mesh_among_others(tmp_path):
    scenes.mesh_object("Nothing", [])
    scenes.mesh_object("Edge", [(0, 0, 0), (3, 3, 3)], edges=[(0, 1)])
    scenes.cube()
    objects = bpy.data.objects[:]
    _, subject, _ = scenes.bake_and_compare(objects, tmp_path)
    assert subject.object_counts == (8, 2, 0)


def test_not_a_mesh(tmp_path):
    with pytest.raises(protocol.UserError, match="Nothing is selected"):
        scenes.subject_of([], tmp_path)
    scenes.add(bpy.data.objects.new("Null", None))
    refused(tmp_path, "“Null” has no mesh: it is an empty")
    scenes.reset()
    scenes.add(bpy.data.objects.new("Lamp", bpy.data.lights.new("Lamp", "POINT")))
    refused(tmp_path, "“Lamp” has no mesh: it is a light")


def test_a_collection_instance(tmp_path):
    empty = scenes.add(bpy.data.objects.new("Copy", None))
    empty.instance_type, empty.instance_collection = "COLLECTION", bpy.data.collections.new("Things")
    with pytest.raises(protocol.UserError, match="collection instance") as caught:
        scenes.subject_of([empty], tmp_path)
    assert "Make Instances Real" in caught.value.hint


def test_empties_beside_meshes_are_left_out(tmp_path):
    obj = scenes.cube()
    empty = scenes.add(bpy.data.objects.new("A null", None))
    subject = scenes.subject_of([empty, obj], tmp_path)
    assert subject.object_names == ("Cube",)
    bake.bake_shape_keys([empty, obj], subject, scenes.random_motion(subject))


def test_invalid_transforms(tmp_path):
    obj = scenes.cube()
    obj.location.x = float("nan")
    bpy.context.view_layer.update()
    refused(tmp_path, "invalid transform")
    obj.location.x, obj.scale = 0.0, (0, 0, 0)
    refused(tmp_path, "no size")


def test_materials_that_are_not_there(tmp_path):
    """An empty slot, no slot, a face with a slot that doesn't exist, a texture whose image is missing."""
    obj = scenes.cube()
    obj.data.materials.append(None)
    obj.data.polygons[0].material_index = 7
    missing = scenes.colored(scenes.cube("Other", center=(3, 0, 0)), (1, 0, 0)).data.materials[0]
    texture = missing.node_tree.nodes.new("ShaderNodeTexImage")
    texture.image = bpy.data.images.new("Gone", 4, 4)
    texture.image.source, texture.image.filepath = "FILE", "//gone.png"
    missing.node_tree.links.new(texture.outputs[0], missing.node_tree.nodes["Emission"].inputs["Color"])
    before = scenes.snapshot()
    settings = scenes.capture.CaptureSettings("color", condition_size=32, appearance_views=())
    scenes.capture.capture([obj, bpy.data.objects["Other"]], tmp_path, settings)
    assert scenes.snapshot() == before


def test_objects_outside_of_the_scene(tmp_path):
    """In an excluded collection, or in no collection at all."""
    collection = bpy.data.collections.new("Excluded")
    bpy.context.scene.collection.children.link(collection)
    obj = scenes.cube()
    bpy.context.scene.collection.objects.unlink(obj)
    collection.objects.link(obj)
    obj.location = (0, 0, 5)
    bpy.context.view_layer.layer_collection.children[0].exclude = True
    subject = scenes.subject_of([obj], tmp_path)
    np.testing.assert_allclose(subject.to_world[:3, 3], (0, 0, 5), atol=1e-6)


def test_metaballs_become_a_mesh_in_batch_mode(tmp_path):
    bpy.ops.object.metaball_add(type="BALL")
    ball = bpy.context.object
    subject = scenes.subject_of([ball], tmp_path)
    settings = bake.BakeSettings(apply_modifiers=True)
    (baked,) = bake.bake_shape_keys([ball], subject, scenes.random_motion(subject), settings)
    assert baked.object.type == "MESH" and len(baked.object.data.vertices) == subject.object_counts[0]


def test_geometry_nodes_that_make_their_own_mesh(tmp_path):
    """The object's look counts, not the mesh below."""
    obj = scenes.cube()
    group = bpy.data.node_groups.new("Sphere", "GeometryNodeTree")
    group.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    output = group.nodes.new("NodeGroupOutput")
    sphere = group.nodes.new("GeometryNodeMeshUVSphere")
    group.links.new(sphere.outputs["Mesh"], output.inputs[0])
    obj.modifiers.new("Nodes", "NODES").node_group = group
    subject = scenes.subject_of([obj], tmp_path)
    assert len(subject.vertices) == 482
    scenes.bake_and_compare([obj], tmp_path, bake.BakeSettings(apply_modifiers=True))
