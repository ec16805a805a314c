"""Takes that are clouds of points: they go where the surface goes, in its colours, and take turns with the others."""

from __future__ import annotations

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402
from test_blender_jobs import select  # noqa: E402
from test_blender_takes import look  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import (  # noqa: E402
    compat,
    points,
    results,
    splats,
    take_data,
    take_edits,
    take_points,
    takes,
    ui_takes,
)
from animate3d_addon.timing import Timing  # noqa: E402
from backend import protocol  # noqa: E402


@pytest.fixture(autouse=True)
def registered():
    animate3d_addon.register()
    scenes.reset()
    yield
    animate3d_addon.unregister()


def cloud_of(obj, tmp_path, count=2000, timing=None):
    """A take of a random motion as points; returns the motion and where the points are at rest, in the world."""
    subject = scenes.subject_of([obj], tmp_path)
    motion = scenes.random_motion(subject)
    takes.add([obj], subject, motion, timing or Timing(4), "a take", rest_frame=1, points=count)
    return motion, obj.animate3d.active.cloud


def seen(cloud, frame):
    """World places [N, 3] of the points' vertices at a frame; balls are drawn there."""
    cloud.modifiers[0].show_viewport = False
    return look(cloud, frame)


def on_surface(obj, places, vertices):
    """The largest distance of places [N, 3] from where the surface's vertices [V, 3] take them, all in the world."""
    local = np.empty(3 * len(obj.data.vertices), np.float32)
    keys = obj.data.shape_keys
    (keys.reference_key.points if keys else obj.data.vertices).foreach_get("co", local)
    samples = points.sample(obj.data, local.reshape(-1, 3), len(places))
    return np.linalg.norm(samples.at(vertices) - places, axis=1).max()


def test_points_stay_on_the_surface_while_it_moves(tmp_path):
    obj = scenes.grid("Sheet", 12)
    obj.location, obj.rotation_euler, obj.scale = (1, 2, 3), (0.3, 0.2, 1.0), (1, 2, 0.5)
    bpy.context.view_layer.update()
    rest = scenes.world_vertices(obj)
    motion, cloud = cloud_of(obj, tmp_path)
    assert len(cloud.data.vertices) == 2000 and obj.data.shape_keys is None
    for frame, index in ((1, 0), (4, 1), (7, 2), (10, 3)):
        assert on_surface(obj, seen(cloud, frame), rest + motion.offsets[index]) < 1e-5, frame
    half = rest + 0.5 * (motion.offsets[1] + motion.offsets[2])
    assert on_surface(obj, seen(cloud, 5.5), half) < 1e-5


def test_points_are_spread_evenly_and_have_all_numbers_of_gaussians(tmp_path):
    obj = scenes.cube()
    _, cloud = cloud_of(obj, tmp_path, count=6000)
    places = np.array([vertex.co for vertex in cloud.data.vertices])
    sides = [int(np.isclose(places[:, axis], end, atol=1e-5).sum()) for axis in range(3) for end in (-1, 1)]
    assert all(abs(count - 1000) <= 2 for count in sides), sides
    assert splats.is_splats(cloud)
    normals = {"rot_1": 0, "rot_2": 0}
    for name in normals:
        values = np.empty(6000, np.float32)
        cloud.data.attributes[name].data.foreach_get("value", values)
        assert np.isfinite(values).all() and np.ptp(values) > 0.5
    balls = bpy.context.evaluated_depsgraph_get().object_instances
    (shown,) = [each.object.data for each in balls if each.object.type == "POINTCLOUD"]
    assert len(shown.points) == 6000


def test_quaternions_turn_the_axes():
    from mathutils import Quaternion

    rng = np.random.default_rng(0)
    quats = rng.normal(size=(200, 4))
    quats[:3] = ((0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))  # half turns, where one of the formulas divides by nothing
    matrices = np.array([Quaternion(q).normalized().to_matrix() for q in quats])
    again = np.array([Quaternion(q).to_matrix() for q in points.quaternions(matrices)])
    np.testing.assert_allclose(again, matrices, atol=1e-6)


def image(width, height, pixels):
    made = bpy.data.images.new("Picture", width, height)
    made.pixels.foreach_set(np.asarray(pixels, np.float32).ravel())
    return made


def test_colours_of_one_colour_an_image_an_attribute_and_nothing(tmp_path):
    obj = scenes.cube()
    for name in ("plain", "image", "attribute"):
        material = bpy.data.materials.new(name)
        tree = compat.node_tree(material)
        shader = tree.nodes.new("ShaderNodeBsdfPrincipled")
        tree.links.new(shader.outputs[0], tree.nodes.new("ShaderNodeOutputMaterial").inputs[0])
        shader.inputs["Base Color"].default_value = (1.0, 0.0, 0.0, 1.0)
        if name == "image":
            node = tree.nodes.new("ShaderNodeTexImage")
            node.image = image(2, 1, [(0, 1, 0, 1), (0, 0, 1, 1)])
            tree.links.new(node.outputs[0], shader.inputs["Base Color"])
        if name == "attribute":
            node = tree.nodes.new("ShaderNodeVertexColor")
            node.layer_name = "Paint"
            tree.links.new(node.outputs[0], shader.inputs["Base Color"])
        obj.data.materials.append(material)
    obj.data.materials.append(None)
    paint = obj.data.color_attributes.new("Paint", "FLOAT_COLOR", "POINT")
    for value in paint.data:
        value.color = (1.0, 1.0, 0.0, 1.0)
    layer = obj.data.uv_layers.new()
    for corner in layer.uv:
        corner.vector = (0.75, 0.5)
    for polygon, slot in zip(obj.data.polygons, (0, 1, 2, 3, 3, 3), strict=True):
        polygon.material_index = slot
    _, cloud = cloud_of(obj, tmp_path, count=600)
    colors = np.stack([_column(cloud, f"f_dc_{k}") for k in range(3)], axis=1) * splats.SH_C0 + 0.5
    found = {tuple(color) for color in np.round(colors.astype(float), 2).tolist()}
    assert found == {(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.91, 0.91, 0.91)}


def _column(cloud, name):
    values = np.empty(len(cloud.data.vertices), np.float32)
    cloud.data.attributes[name].data.foreach_get("value", values)
    return values


def test_points_take_turns_with_keys_and_the_surface_comes_back(tmp_path):
    obj = scenes.cube()
    obj.display_type = "WIRE"
    motion, cloud = cloud_of(obj, tmp_path)
    assert (obj.display_type, obj.hide_render) == ("BOUNDS", True) and cloud.name in bpy.context.scene.objects
    assert take_data.of(cloud) == obj
    takes.become(obj, "KEYS")
    assert (obj.display_type, obj.hide_render) == ("WIRE", False) and cloud.name not in bpy.context.scene.objects
    np.testing.assert_allclose(look(obj, 4) - scenes.CUBE, motion.offsets[1], atol=1e-6)
    take_edits.duplicate(obj)
    takes.become(obj, "POINTS")
    assert obj.animate3d.active.cloud not in (None, cloud) and obj.data.shape_keys is None
    obj.animate3d.active_index = 0
    assert obj.display_type == "WIRE" and len(bpy.context.scene.objects) == 1
    obj.animate3d.active_index = 1
    takes.delete(obj)
    takes.delete(obj)
    assert [o.name for o in bpy.data.objects] == ["Cube"] and len(bpy.data.actions) == 0 and len(bpy.data.meshes) == 1


def test_timing_and_muting_of_points(tmp_path):
    obj = scenes.cube()
    motion, cloud = cloud_of(obj, tmp_path)
    take = obj.animate3d.active
    take.strength, take.step, take.start, take.loop = 0.5, 2.0, 11.0, "CYCLE"
    for frame, index in ((11, 0), (13, 1), (17, 3), (19, 0), (23, 2)):
        assert on_surface(obj, seen(cloud, frame), scenes.CUBE + 0.5 * motion.offsets[index]) < 1e-5, frame
    obj.animate3d.is_shown = False
    assert on_surface(obj, seen(cloud, 13), scenes.CUBE) < 1e-5
    take.count = 300
    assert len(obj.animate3d.active.cloud.data.vertices) == 300


def test_a_copy_and_the_nla(tmp_path):
    obj = scenes.cube()
    motion, cloud = cloud_of(obj, tmp_path)
    (copy,) = take_edits.to_copy(obj)
    own = copy.animate3d.active.cloud
    assert own != cloud and own.parent == copy and own.data != cloud.data
    copy.animate3d.active.strength = 0.0
    assert on_surface(obj, seen(cloud, 4), scenes.CUBE + motion.offsets[1]) < 1e-5
    assert on_surface(obj, seen(own, 4), scenes.CUBE) < 1e-5
    take_edits.push_to_nla(obj)
    assert obj.animate3d.active is None and take_data.of(cloud) == cloud
    assert on_surface(obj, seen(cloud, 4), scenes.CUBE + motion.offsets[1]) < 1e-5


def test_frames_are_complete_files_that_turn_and_play(tmp_path):
    obj = scenes.cube()
    subject = scenes.subject_of([obj], tmp_path)
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], float)
    offsets = np.stack([np.zeros((8, 3)), scenes.CUBE @ quarter.T - scenes.CUBE]).astype(np.float32)
    takes.add([obj], subject, protocol.Motion(offsets), Timing(2, start=1, step=4), "turn", rest_frame=1, points=400)
    select(obj)
    play = compat.has_ply_nodes()
    bpy.ops.animate3d.take_save_frames(directory=str(tmp_path / "frames"), play=play)
    SplatFile = pytest.importorskip("backend.splats.ply", exc_type=ImportError).SplatFile

    first, second = (SplatFile.open(tmp_path / "frames" / f"frame_000{k}.ply") for k in (1, 2))
    places = ("x", "y", "z")
    np.testing.assert_allclose(second.columns(places), first.columns(places) @ quarter.T, atol=1e-5)
    from mathutils import Matrix, Quaternion

    turn = Matrix(quarter.tolist()).to_quaternion()
    for before, after in zip(*(each.columns([f"rot_{k}" for k in range(4)]) for each in (first, second)), strict=True):
        assert abs((turn @ Quaternion(before)).dot(Quaternion(after))) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(second.columns(["scale_0"]), first.columns(["scale_0"]), atol=1e-5)
    assert ("Cube frames" in bpy.data.objects) == play
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="can't be written"):
        bpy.ops.animate3d.take_save_frames(directory=str(tmp_path / "file" / "frames"))


@pytest.mark.parametrize("kind", ["KEYS", "POINTS"])
def test_what_is_shown_is_exported(tmp_path, kind):
    obj = scenes.cube()
    cloud_of(obj, tmp_path, count=300)
    takes.become(obj, kind)
    select(obj)
    assert bpy.ops.animate3d.export(filepath=str(tmp_path / "out.glb")) == {"FINISHED"}
    primitive = scenes.read_glb(tmp_path / "out.glb")["meshes"][0]["primitives"][0]
    assert len(primitive["targets"]) == 3 and (primitive.get("mode", 4) == 0) == (kind == "POINTS")
    before = scenes.snapshot()
    with pytest.raises(RuntimeError, match="can't be written"):
        bpy.ops.animate3d.export(filepath=str(tmp_path / "out.xyz"))
    assert scenes.snapshot() == before


def waving():
    obj = scenes.cube()
    obj.modifiers.new("Wave", "WAVE")
    return obj


@pytest.mark.parametrize("make", [waving, scenes.rigged])
def test_what_points_could_not_follow_is_refused_and_a_copy_is_offered(make, tmp_path):
    """The sentence, and the button below it in the panel."""
    obj = make()
    select(obj)
    bpy.context.scene.animate3d.output = "POINTS"
    before = scenes.snapshot()
    for attempt in (lambda: cloud_of(obj, tmp_path), lambda: results.chosen_objects(bpy.context)):
        with pytest.raises(take_points.Stiff, match="points would not follow"):
            attempt()
    assert scenes.snapshot() == before and not obj.animate3d.takes
    rest = scenes.world_vertices(obj)
    assert bpy.ops.animate3d.copy_applied() == {"FINISHED"}
    (copy,) = results.chosen_objects(bpy.context)
    motion, cloud = cloud_of(copy, tmp_path / "copy")
    for frame, index in ((1, 0), (10, 3)):
        assert on_surface(copy, seen(cloud, frame), rest + motion.offsets[index]) < 1e-5, frame


def test_points_that_are_left_behind_by_a_new_modifier_are_told(tmp_path):
    obj = scenes.cube()
    cloud_of(obj, tmp_path)
    assert ui_takes.left_behind(obj) is None
    wave = obj.modifiers.new("Wave", "WAVE")
    assert "would not follow" in ui_takes.left_behind(obj).message
    wave.show_viewport = False
    assert ui_takes.left_behind(obj) is None
