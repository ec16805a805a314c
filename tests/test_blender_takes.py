"""Takes: several motions of one object, of which one is shown; switching, timing, and back to what was."""

from __future__ import annotations

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import compat, mesh_cache, take_data, take_edits, takes  # noqa: E402
from animate3d_addon.timing import Timing, hats  # noqa: E402
from backend import protocol  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def registered():
    animate3d_addon.register()
    yield
    animate3d_addon.unregister()


@pytest.fixture(autouse=True)
def empty_file(registered):
    scenes.reset()


def add_takes(objects, tmp_path, seeds=(1, 2), timing=None):
    """A take for each seed; returns the subject and the motions."""
    subject = scenes.subject_of(objects, tmp_path)
    motions = [scenes.random_motion(subject, seed=seed) for seed in seeds]
    for seed, motion in zip(seeds, motions, strict=True):
        takes.add(objects, subject, motion, timing or Timing(4), f"take {seed}", rest_frame=1)
    return subject, motions


def look(obj, frame):
    bpy.context.scene.frame_set(int(frame // 1), subframe=frame % 1)
    return scenes.world_vertices(obj)


def test_the_newest_take_is_shown_and_others_come_back(tmp_path):
    obj = scenes.cube()
    _, motions = add_takes([obj], tmp_path)
    own = obj.animate3d
    assert [take.name for take in own.takes] == ["take 1", "take 2"] and own.active_index == 1
    np.testing.assert_allclose(look(obj, 4) - scenes.CUBE, motions[1].offsets[1], atol=1e-6)
    own.active_index = 0
    np.testing.assert_allclose(look(obj, 4) - scenes.CUBE, motions[0].offsets[1], atol=1e-6)
    assert len(obj.data.shape_keys.key_blocks) == 4  # the basis and one set of keys
    own.is_shown = False
    np.testing.assert_array_equal(look(obj, 4), scenes.CUBE)


def test_strength_speed_and_range_are_timing_alone(tmp_path):
    obj = scenes.cube()
    _, (motion,) = add_takes([obj], tmp_path, seeds=(1,))
    take = obj.animate3d.takes[0]
    take.strength = 2.0
    np.testing.assert_allclose(look(obj, 4) - scenes.CUBE, 2 * motion.offsets[1], atol=1e-6)
    take.strength, take.step, take.start = 0.5, 1.5, 10.0
    np.testing.assert_allclose(look(obj, 13) - scenes.CUBE, 0.5 * motion.offsets[2], atol=1e-6)
    take.strength, take.step, take.start, take.first, take.last = 1.0, 3.0, 1.0, 2, 3
    np.testing.assert_allclose(look(obj, 1) - scenes.CUBE, motion.offsets[2], atol=1e-6)
    np.testing.assert_allclose(look(obj, 4) - scenes.CUBE, motion.offsets[3], atol=1e-6)


def test_loops(tmp_path):
    obj = scenes.cube()
    _, (motion,) = add_takes([obj], tmp_path, seeds=(1,))
    take = obj.animate3d.takes[0]
    take.loop = "CYCLE"  # a round is 4 steps of 3 frames
    for frame, index in ((1, 0), (10, 3), (13, 0), (16, 1), (22, 3), (4 + 12 * 9, 1)):
        np.testing.assert_allclose(look(obj, frame) - scenes.CUBE, motion.offsets[index], atol=1e-5, err_msg=str(frame))
    take.loop = "PINGPONG"  # 0 1 2 3 2 1 0: six steps
    for frame, index in ((10, 3), (13, 2), (16, 1), (19, 0), (22, 1), (28, 3)):
        np.testing.assert_allclose(look(obj, frame) - scenes.CUBE, motion.offsets[index], atol=1e-5, err_msg=str(frame))


@pytest.mark.parametrize("loop", ["OFF", "CYCLE", "PINGPONG"])
def test_at_every_step_one_key_is_fully_on(loop):
    timing = Timing(6, start=5, step=2, loop=loop, first=1, last=4, strength=0.7)
    curves = hats(timing)
    for place, frame in enumerate(timing.order):
        at = timing.start + place * timing.step
        values = [np.interp(at, *zip(*points, strict=True)) for points in curves]
        np.testing.assert_allclose(values, [0.7 if key == frame else 0.0 for key in range(1, 6)])


def test_duplicate_and_delete(tmp_path):
    obj = scenes.cube()
    add_takes([obj], tmp_path, seeds=(1,))
    take_edits.duplicate(obj)
    own = obj.animate3d
    assert [take.name for take in own.takes] == ["take 1", "take 1 2"]
    assert own.takes[0].offsets == own.takes[1].offsets  # the motion itself is there once
    own.takes[1].strength = 2.0
    assert own.takes[0].strength == 1.0
    takes.delete(obj)
    takes.delete(obj)
    assert obj.data.shape_keys is None and len(bpy.data.actions) == 0 and len(bpy.data.meshes) == 1


def test_deleting_takes_leaves_what_was_there_before(tmp_path):
    obj = scenes.cube()
    obj.shape_key_add(name="Basis", from_mix=False)
    own_key = obj.shape_key_add(name="Wide", from_mix=False)
    own_key.value = 0.0
    own_key.keyframe_insert("value", frame=1)
    add_takes([obj], tmp_path)
    takes.delete(obj)
    takes.delete(obj)
    assert [key.name for key in obj.data.shape_keys.key_blocks] == ["Basis", "Wide"]
    assert obj.data.shape_keys.animation_data.action is not None


def test_objects_animated_together_switch_together(tmp_path):
    objects = [scenes.cube("a"), scenes.cube("b", center=(3, 0, 0)), scenes.cube("c", center=(6, 0, 0))]
    add_takes(objects[:2], tmp_path)
    a, b, c = objects
    same_action = a.data.shape_keys.animation_data.action == b.data.shape_keys.animation_data.action
    assert same_action == compat.has_slots()
    b.animate3d.active_index = 0
    assert a.animate3d.active_index == 0 and c.animate3d.active_index == -1
    a.animate3d.takes[0].strength = 0.25
    assert b.animate3d.takes[0].strength == 0.25 and b.animate3d.takes[1].strength == 1.0
    takes.delete(b)
    assert len(a.animate3d.takes) == 1


def test_a_duplicate_of_the_object_has_takes_of_its_own(tmp_path):
    obj = scenes.cube()
    _, motions = add_takes([obj], tmp_path)
    (copy,) = take_edits.to_copy(obj)
    assert len(copy.animate3d.takes) == 1 and copy.data != obj.data
    obj.animate3d.active_index = 0
    np.testing.assert_allclose(look(copy, 4) - scenes.CUBE, motions[1].offsets[1], atol=1e-6)
    np.testing.assert_allclose(look(obj, 4) - scenes.CUBE, motions[0].offsets[1], atol=1e-6)


def test_pushed_to_the_nla_it_plays_under_the_next_take(tmp_path):
    obj = scenes.cube()
    _, motions = add_takes([obj], tmp_path)
    take_edits.push_to_nla(obj)
    assert obj.animate3d.active_index == -1
    assert [track.name for track in obj.data.shape_keys.animation_data.nla_tracks] == ["take 2"]
    np.testing.assert_allclose(look(obj, 4) - scenes.CUBE, motions[1].offsets[1], atol=1e-5)
    obj.animate3d.active_index = 0
    both = motions[0].offsets[1] + motions[1].offsets[1]
    np.testing.assert_allclose(look(obj, 4) - scenes.CUBE, both, atol=1e-5)


def test_takes_are_saved_with_the_file(tmp_path):
    obj = scenes.cube()
    _, motions = add_takes([obj], tmp_path)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "saved.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "saved.blend"))
    obj = bpy.data.objects["Cube"]
    obj.animate3d.active_index = 0
    np.testing.assert_allclose(look(obj, 4) - scenes.CUBE, motions[0].offsets[1], atol=1e-6)


def test_a_mesh_that_has_changed_is_told_and_left_alone(tmp_path):
    obj = scenes.cube()
    add_takes([obj], tmp_path)
    obj.data = scenes.mesh_object("Other", [(0, 0, 0), (1, 0, 0), (0, 1, 0)], [(0, 1, 2)]).data
    obj.animate3d.active_index = 0
    assert "has 3" in take_data.fault(obj).message and obj.data.shape_keys is None
    with pytest.raises(protocol.UserError, match="mesh has changed"):
        takes.show(obj)


@pytest.mark.parametrize("loop", ["OFF", "CYCLE", "PINGPONG"])
def test_moved_to_a_mesh_cache_it_plays_the_same(tmp_path, loop):
    """At every frame and half-frame, loops included; the take stays in the list."""
    obj = scenes.cube("Cube / 1")
    obj.shape_key_add(name="Basis")
    timing = Timing(4, start=3, step=2, strength=0.5, loop=loop)
    add_takes([obj], tmp_path / "job", seeds=(1,), timing=timing)
    times = np.arange(1, 30, 0.5)
    truth = [look(obj, time) for time in times]
    (path,) = mesh_cache.push(obj, tmp_path / "cache")
    assert path.name == "Cube _ 1 take 1.pc2" and [p.name for p in path.parent.iterdir()] == [path.name]
    assert (
        len(obj.data.shape_keys.key_blocks) == 1 and obj.animate3d.active_index == -1 and len(obj.animate3d.takes) == 1
    )
    for time, expected in zip(times, truth, strict=True):
        np.testing.assert_allclose(look(obj, time), expected, atol=1e-5, err_msg=str(time))


def test_a_cache_that_can_not_be_written_changes_nothing(tmp_path):
    obj = scenes.cube()
    add_takes([obj], tmp_path / "job", seeds=(1,))
    (tmp_path / "file").write_text("no folder")
    before = scenes.snapshot()
    with pytest.raises(protocol.UserError, match="can't be written"):
        mesh_cache.push(obj, tmp_path / "file")
    assert scenes.snapshot() == before and obj.animate3d.active_index == 0
