"""Bake: the object looks on the timeline exactly as the motion says, and what was there stays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402

from animate3d_addon import bake, compat  # noqa: E402
from backend import protocol  # noqa: E402

BATCH = bake.BakeSettings(apply_modifiers=True)
SHEARED = np.array([[2.0, 0.5, 0.0, 3.0], [0.0, -1.0, 0.7, -2.0], [0.3, 0.0, 0.4, 5.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture(autouse=True)
def empty_file():
    scenes.reset()


def test_keys_are_hats(tmp_path):
    obj = scenes.cube()
    (baked,), _, motion = scenes.bake_and_compare([obj], tmp_path)
    assert baked.keys == ("Animate3D 001", "Animate3D 002", "Animate3D 003")
    bpy.context.scene.frame_set(5, subframe=0.5)  # half way between frames 1 (at 4) and 2 (at 7)
    middle = scenes.world_vertices(obj) - scenes.CUBE
    np.testing.assert_allclose(middle, 0.5 * (motion.offsets[1] + motion.offsets[2]), atol=1e-6)
    for frame in (-10, 1):
        bpy.context.scene.frame_set(frame)
        np.testing.assert_array_equal(scenes.world_vertices(obj), scenes.CUBE)
    bpy.context.scene.frame_set(99)  # the last frame holds
    np.testing.assert_allclose(scenes.world_vertices(obj) - scenes.CUBE, motion.offsets[3], atol=1e-6)
    assert all(key.value in (0.0, 1.0) for key in obj.data.shape_keys.key_blocks)


def test_timeline(tmp_path):
    bpy.context.scene.frame_start, bpy.context.scene.frame_end = 5, 8
    scenes.bake_and_compare([scenes.cube()], tmp_path, bake.BakeSettings(start=3, step=2))
    assert (bpy.context.scene.frame_start, bpy.context.scene.frame_end) == (3, 9)
    scenes.reset()
    bpy.context.scene.frame_end = 250
    scenes.bake_and_compare([scenes.cube()], tmp_path)
    assert bpy.context.scene.frame_end == 250


@pytest.mark.parametrize("translation", [0.0, 1e6])
def test_sheared_mirrored_and_far_away(tmp_path, translation):
    matrix = SHEARED.copy()
    matrix[:3, 3] += translation
    obj = scenes.set_matrix(scenes.cube(), matrix)
    # At 1e6 the world positions that Blender reports are themselves only good to 0.06.
    scenes.bake_and_compare([obj], tmp_path, tolerance=1e-5 if translation == 0 else 0.02)
    key = obj.data.shape_keys.key_blocks[1]
    local = np.array([point.co for point in key.points]) - scenes.CUBE
    subject = protocol.Subject.load(tmp_path)
    motion = scenes.random_motion(subject)
    np.testing.assert_allclose(local @ matrix[:3, :3].T, motion.offsets[1], atol=1e-5)


def test_non_uniform_scale_under_a_rotated_parent(tmp_path):
    parent = scenes.add(bpy.data.objects.new("Parent", None))
    parent.rotation_euler, parent.scale, parent.location = (0.3, 0.9, -0.4), (1, 3, 0.2), (10, 20, 30)
    obj = scenes.cube()
    obj.parent, obj.rotation_euler, obj.scale = parent, (1, 2, 3), (-1, 2, 5)
    bpy.context.view_layer.update()
    scenes.bake_and_compare([obj], tmp_path)


def test_a_scale_of_zero(tmp_path):
    """What can move, moves; the object stays flat along the axis it's squashed along."""
    obj = scenes.set_matrix(scenes.cube(), np.diag([1.0, 1.0, 0.0, 1.0]))
    subject = scenes.subject_of([obj], tmp_path)
    motion = scenes.random_motion(subject)
    bake.bake_shape_keys([obj], subject, motion)
    bpy.context.scene.frame_set(4)
    expected = scenes.CUBE * (1, 1, 0) + motion.offsets[1] * (1, 1, 0)
    np.testing.assert_allclose(scenes.world_vertices(obj), expected, atol=1e-6)


@pytest.mark.parametrize("size", [1e6, 1e-6])
def test_sizes(tmp_path, size):
    scenes.bake_and_compare([scenes.cube("Cube", size)], tmp_path)


def test_existing_keys_their_animation_and_drivers_stay(tmp_path):
    obj = scenes.cube()
    obj.shape_key_add(name="Basis", from_mix=False)
    wide = obj.shape_key_add(name="Animate3D 001", from_mix=False)  # a name like ours
    driven = obj.shape_key_add(name="Driven", from_mix=False)
    for index in range(8):
        wide.data[index].co.x *= 2.0
        driven.data[index].co.z += 1.0
    wide.value, driven.value = 0.0, 0.0
    wide.keyframe_insert("value", frame=1)
    wide.value = 1.0
    wide.keyframe_insert("value", frame=10)
    driven.driver_add("value").driver.expression = "0.25"
    obj.show_only_shape_key, obj.active_shape_key_index = True, 1
    bpy.context.scene.frame_set(1)
    obj.show_only_shape_key = False
    rest = scenes.world_vertices(obj)
    np.testing.assert_allclose(rest, scenes.CUBE + np.array((0, 0, 0.25)), atol=1e-6)
    obj.show_only_shape_key = True

    subject = scenes.subject_of([obj], tmp_path)
    motion = scenes.random_motion(subject)
    (baked,) = bake.bake_shape_keys([obj], subject, motion)
    assert baked.keys == ("Animate3D 001.001", "Animate3D 002", "Animate3D 003")
    assert not obj.show_only_shape_key and obj.active_shape_key_index == 1
    bpy.context.scene.frame_set(1)
    np.testing.assert_array_equal(scenes.world_vertices(obj), rest)
    bpy.context.scene.frame_set(10)  # our frame 3, and the old key fully on
    expected = scenes.CUBE * (2, 1, 1) + (0, 0, 0.25) + motion.offsets[3]
    np.testing.assert_allclose(scenes.world_vertices(obj), expected, atol=1e-5)


def test_baking_twice_gives_a_second_set(tmp_path):
    obj = scenes.cube()
    scenes.bake_and_compare([obj], tmp_path)
    for key in obj.data.shape_keys.key_blocks[1:]:
        key.mute = True
    bpy.context.scene.frame_set(1)
    scenes.bake_and_compare([obj], tmp_path)
    assert len(obj.data.shape_keys.key_blocks) == 7


def test_fcurves_of_deleted_keys_are_replaced(tmp_path):
    obj = scenes.cube()
    scenes.bake_and_compare([obj], tmp_path)
    for key in list(obj.data.shape_keys.key_blocks[1:]):
        obj.shape_key_remove(key)
    scenes.bake_and_compare([obj], tmp_path)


def test_an_action_that_others_use_is_copied(tmp_path):
    first = scenes.cube("a")
    first.shape_key_add(name="Basis", from_mix=False)
    key = first.shape_key_add(name="Old", from_mix=False)
    key.value = 0.0
    key.keyframe_insert("value", frame=1)
    action = first.data.shape_keys.animation_data.action
    second = scenes.add(first.copy())
    second.name, second.data = "b", first.data.copy()
    assert action.users > 1
    scenes.bake_and_compare([first], tmp_path)
    assert second.data.shape_keys.animation_data.action == action
    bpy.context.scene.frame_set(4)
    np.testing.assert_array_equal(scenes.world_vertices(second), scenes.CUBE)


def test_an_object_that_is_already_keyframed_keeps_moving(tmp_path):
    obj = scenes.cube()
    obj.location = (0, 0, 0)
    obj.keyframe_insert("location", frame=1)
    obj.location = (9, 0, 0)
    obj.keyframe_insert("location", frame=10)
    for point in compat.object_fcurves(obj, obj.animation_data.action)[0].keyframe_points:
        point.interpolation = "LINEAR"
    bpy.context.scene.frame_set(1)
    subject = scenes.subject_of([obj], tmp_path)
    motion = scenes.random_motion(subject)
    bpy.context.scene.frame_set(50)  # where the user looks meanwhile
    bake.bake_shape_keys([obj], subject, motion, bake.BakeSettings(rest_frame=1))
    bpy.context.scene.frame_set(10)
    np.testing.assert_allclose(scenes.world_vertices(obj), scenes.CUBE + (9, 0, 0) + motion.offsets[3], atol=1e-5)


def test_six_objects_that_share_a_mesh_move_on_their_own(tmp_path):
    objects = [scenes.cube("0")]
    objects += [scenes.add(bpy.data.objects.new(str(i), objects[0].data)) for i in range(1, 6)]
    bystander = scenes.add(bpy.data.objects.new("bystander", objects[0].data))
    for index, obj in enumerate(objects):
        obj.location, obj.rotation_euler = (5 * index, 0, 0), (index, 0, 0)
    bpy.context.view_layer.update()
    baked, *_ = scenes.bake_and_compare(objects, tmp_path)
    assert len({each.object.data for each in baked}) == 6
    assert len({each.action for each in baked}) == (1 if compat.has_slots() else 6)
    assert bystander.data.shape_keys is None


def test_a_rig_stays_and_the_look_is_exact(tmp_path):
    obj = scenes.rigged()
    scenes.bake_and_compare([obj], tmp_path, tolerance=1e-4)
    assert obj.modifiers[0].type == "ARMATURE"


def test_a_rig_is_applied_in_batch_mode(tmp_path):
    obj = scenes.rigged()
    (baked,), *_ = scenes.bake_and_compare([obj], tmp_path, BATCH)
    assert not baked.object.modifiers


def test_modifiers_that_keep_the_vertices(tmp_path):
    obj = scenes.cube()
    obj.modifiers.new("Smooth", "TRIANGULATE")
    obj.modifiers.new("Weighted", "WEIGHTED_NORMAL")
    scenes.bake_and_compare([obj], tmp_path, tolerance=1e-4)


def test_modifiers_that_add_vertices(tmp_path):
    obj = scenes.cube()
    obj.shape_key_add(name="Basis", from_mix=False)
    obj.modifiers.new("More", "SUBSURF").levels = 2
    subject = scenes.subject_of([obj], tmp_path)
    before = scenes.snapshot()
    with pytest.raises(protocol.UserError, match="modifiers that change its number of vertices"):
        bake.bake_shape_keys([obj], subject, scenes.random_motion(subject))
    assert scenes.snapshot() == before
    (baked,), *_ = scenes.bake_and_compare([obj], tmp_path, BATCH)
    assert len(baked.object.data.vertices) == 98 and not baked.object.modifiers


def test_a_text_becomes_a_mesh_in_batch_mode(tmp_path):
    text = scenes.add(bpy.data.objects.new("Word", bpy.data.curves.new("Word", "FONT")))
    text.data.body, text.rotation_euler, text.scale = "Wag", (1, 2, 3), (1, 2, 3)
    bpy.context.view_layer.update()
    subject = scenes.subject_of([text], tmp_path)
    with pytest.raises(protocol.UserError, match="is not a mesh"):
        bake.bake_shape_keys([text], subject, scenes.random_motion(subject))
    (baked,), *_ = scenes.bake_and_compare([text], tmp_path, BATCH)
    assert baked.object.type == "MESH" and baked.object.name == "Word"
    assert [obj.name for obj in bpy.data.objects] == ["Word"] and len(bpy.data.curves) == 0


def test_an_object_in_edit_mode(tmp_path):
    obj = scenes.cube()
    bpy.context.view_layer.objects.active = obj
    bpy.ops.object.mode_set(mode="EDIT")
    subject = scenes.subject_of([obj], tmp_path)
    motion = scenes.random_motion(subject)
    bake.bake_shape_keys([obj], subject, motion)
    bpy.context.scene.frame_set(4)
    np.testing.assert_allclose(scenes.world_vertices(obj), scenes.CUBE + motion.offsets[1], atol=1e-6)


def test_a_linked_object_is_refused_and_a_linked_mesh_is_copied(tmp_path):
    scenes.cube("Far")
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "library.blend"), copy=True)
    scenes.reset()
    with bpy.data.libraries.load(str(tmp_path / "library.blend"), link=True) as (_, wanted):
        wanted.objects = ["Far"]
    far = scenes.add(bpy.data.objects["Far"])
    subject = scenes.subject_of([far], tmp_path)
    with pytest.raises(protocol.UserError, match="linked from another file"):
        bake.bake_shape_keys([far], subject, scenes.random_motion(subject))
    near = scenes.add(bpy.data.objects.new("Near", far.data))
    scenes.bake_and_compare([near], tmp_path)
    assert near.data.library is None


def test_absolute_shape_keys_are_refused(tmp_path):
    obj = scenes.cube()
    obj.shape_key_add(name="Basis", from_mix=False)
    obj.shape_key_add(name="Other", from_mix=False)
    obj.data.shape_keys.use_relative = False
    subject = scenes.subject_of([obj], tmp_path)
    with pytest.raises(protocol.UserError, match="absolute shape keys"):
        bake.bake_shape_keys([obj], subject, scenes.random_motion(subject))


def test_what_changed_meanwhile(tmp_path):
    obj = scenes.cube()
    subject = scenes.subject_of([obj], tmp_path)
    motion = scenes.random_motion(subject)
    obj.name = "Renamed"
    bake.bake_shape_keys([obj], subject, motion)
    with pytest.raises(protocol.UserError, match="no longer there"):
        bake.bake_shape_keys([], subject, motion)
    other = scenes.mesh_object("Cube", [(0, 0, 0), (1, 0, 0), (0, 1, 0)], [(0, 1, 2)])
    with pytest.raises(protocol.UserError, match="has changed since"):
        bake.bake_shape_keys([other], subject, motion)
    bad = dataclasses.replace(motion, offsets=motion.offsets * np.nan)
    with pytest.raises(protocol.UserError, match="invalid numbers"):
        bake.bake_shape_keys([obj], subject, bad)


def test_only_the_job_changes(tmp_path):
    """Objects beside it, materials, selection and everything else are as before."""
    scenes.colored(scenes.cube("Bystander"), (1, 0, 0)).select_set(True)
    obj = scenes.colored(scenes.cube(), (0, 1, 0))
    subject = scenes.subject_of([obj], tmp_path)
    before = scenes.snapshot()
    bake.bake_shape_keys([obj], subject, scenes.random_motion(subject))
    after = scenes.snapshot()
    assert {name for name in after if after[name] != before[name]} == {"actions", "shape_keys", "users"}


def test_names_of_every_kind(tmp_path):
    names = ["quotes \"'", "slash/back\\slash", "{braces}", "emoji 🦊", "x" * 63]
    objects = [scenes.cube(name, center=(3 * index, 0, 0)) for index, name in enumerate(names)]
    scenes.bake_and_compare(objects, tmp_path, bake.BakeSettings(name='Take "1"\\'))


def test_several_objects_in_edit_mode(tmp_path):
    objects = [scenes.cube("a"), scenes.cube("b", center=(3, 0, 0))]
    for obj in objects:
        obj.select_set(True)
    bpy.context.view_layer.objects.active = objects[0]
    bpy.ops.object.mode_set(mode="EDIT")
    assert objects[1].mode == "EDIT"
    subject = scenes.subject_of(objects, tmp_path)
    motion = scenes.random_motion(subject)
    bake.bake_shape_keys(
        [objects[1]], scenes.subject_of([objects[1]], tmp_path), protocol.Motion(motion.offsets[:, 8:])
    )
    bpy.context.scene.frame_set(4)
    expected = scenes.CUBE + np.array((3, 0, 0)) + motion.offsets[1, 8:]
    np.testing.assert_allclose(scenes.world_vertices(objects[1]), expected, atol=1e-6)
