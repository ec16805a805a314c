"""Takes that are armatures: shown and put aside like those of shape keys, and turned from the one into the other."""

from __future__ import annotations

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402
from backend_python import make_rig  # noqa: E402
from mathutils import Matrix  # noqa: E402
from test_blender_rig import bend, look, post_and_ball, subject_of  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import backend_process, take_edits, takes, watch  # noqa: E402
from animate3d_addon.timing import Timing  # noqa: E402
from backend import protocol  # noqa: E402

FRAMES = 5


@pytest.fixture(scope="module", autouse=True)
def registered():
    animate3d_addon.register()
    yield
    animate3d_addon.unregister()


def add(objects, rig: bool, strength: float = 1.0, **more) -> tuple[np.ndarray, protocol.Motion]:
    """A take of a bend as an armature or as keys; the rest pose [V, 3] and the motion."""
    bpy.context.scene.frame_set(1)
    subject, rest = subject_of(objects), look(objects)
    motion = bend(rest)
    bones = make_rig(subject, motion) if rig else None
    timing = Timing(FRAMES, strength=strength)
    takes.add(objects, subject, motion, timing, "rig" if rig else "keys", rest_frame=1, rig=bones, **more)
    return rest, motion


def error(objects, rest, motion, frame: int) -> float:
    """Distance from a frame of the motion, of the largest displacement."""
    bpy.context.scene.frame_set(1 + 3 * frame)
    away = np.linalg.norm(look(objects) - (rest + motion.offsets[frame]), axis=1)
    return float(away.max() / np.linalg.norm(motion.offsets, axis=-1).max())


def moved(points: np.ndarray, x: float, y: float) -> np.ndarray:
    return points + np.array([x, y, 0.0])


def follows(objects, rest, motion, tolerance: float = 0.05) -> bool:
    return all(error(objects, rest, motion, frame) < tolerance for frame in (0, 2, 4))


def test_takes_of_both_kinds_take_turns():
    """Each moves the objects alone; whatever is put aside leaves neither modifier nor parent nor armature."""
    objects = post_and_ball()
    before = {obj.name: (obj.parent, len(obj.modifiers)) for obj in objects}
    rest, motion = add(objects, rig=False)
    again = add(objects, rig=True)
    np.testing.assert_allclose(again[0], rest, atol=1e-6)  # the armature was fitted to the rest pose
    assert [obj.type for obj in bpy.context.scene.objects].count("ARMATURE") == 1
    assert objects[0].data.shape_keys is None and follows(objects, rest, motion)
    own = objects[0].animate3d
    own.active_index = 0
    assert objects[1].animate3d.active_index == 0
    assert not any(obj.type == "ARMATURE" for obj in bpy.context.scene.objects)
    assert {obj.name: (obj.parent, len(obj.modifiers)) for obj in objects} == before
    assert follows(objects, rest, motion, 1e-5)
    own.active_index = 1
    assert objects[0].data.shape_keys is None and follows(objects, rest, motion)
    for obj in objects:
        obj.animate3d.is_shown = False
    np.testing.assert_allclose(look(objects), rest, atol=1e-5)


def test_two_armatures_and_a_third_take_on_top():
    """A new take starts from the rest pose, not from the pose of the armature that is shown."""
    objects = post_and_ball()
    rest, motion = add(objects, rig=True)
    subject = subject_of(objects)
    bpy.context.scene.frame_set(10)
    takes.add(objects, subject, motion, Timing(FRAMES), "second", rest_frame=10, rig=make_rig(subject, motion))
    assert follows(objects, rest, motion)
    bpy.context.scene.frame_set(10)
    takes.add(objects, subject, motion, Timing(FRAMES), "third", rest_frame=10)
    assert follows(objects, rest, motion, 1e-4)
    for index in (0, 1, 2):
        objects[0].animate3d.active_index = index
        assert follows(objects, rest, motion)
        assert len([obj for obj in bpy.context.scene.objects if obj.type == "ARMATURE"]) == (index < 2)


def test_strength_speed_and_loop_of_an_armature():
    objects = post_and_ball()
    rest, motion = add(objects, rig=True, strength=0.0)
    np.testing.assert_allclose(look(objects), rest, atol=1e-5)
    take = objects[0].animate3d.takes[0]
    take.strength = 1.0
    assert follows(objects, rest, motion)
    bpy.context.scene.frame_set(13)
    whole = look(objects) - rest
    take.strength = 0.5
    bpy.context.scene.frame_set(13)
    half = look(objects) - rest
    assert 0.3 < np.linalg.norm(half) / np.linalg.norm(whole) < 0.7
    take.strength, take.step, take.start = 1.0, 2.0, 11.0
    bpy.context.scene.frame_set(19)
    np.testing.assert_allclose(look(objects) - rest, whole, atol=1e-4)
    take.loop = "PINGPONG"
    bpy.context.scene.frame_set(11 + 16 + 8)
    np.testing.assert_allclose(look(objects) - rest, whole, atol=1e-4)


def test_keys_become_an_armature_and_keys_again():
    objects = post_and_ball()
    rest, motion = add(objects, rig=False)
    subject = subject_of(objects)
    takes.become_rig(objects[1], subject, make_rig(subject, motion))
    assert len(objects[0].animate3d.takes) == 1 and objects[0].parent.type == "ARMATURE"
    assert follows(objects, rest, motion)
    takes.become(objects[0], "KEYS")
    assert objects[0].parent is None and follows(objects, rest, motion, 1e-5)
    takes.become(objects[0], "RIG")
    assert follows(objects, rest, motion)


def test_an_armature_follows_the_object_while_it_is_put_aside():
    objects = post_and_ball()
    rest, motion = add(objects, rig=True)
    takes.become(objects[0], "KEYS")
    for obj in objects:
        obj.location.x += 7.0
    bpy.context.view_layer.update()
    takes.become(objects[0], "RIG")
    assert follows(objects, moved(rest, 7, 0), motion)


def test_the_object_stays_where_its_armature_was_moved():
    objects = post_and_ball()
    rest, motion = add(objects, rig=True)
    objects[0].animate3d.takes[0].rig.location.y += 5.0
    bpy.context.view_layer.update()
    assert follows(objects, moved(rest, 0, 5), motion)
    takes.become(objects[0], "KEYS")
    assert follows(objects, moved(rest, 0, 5), motion, 1e-4)


def test_duplicate_delete_and_nothing_left():
    objects = post_and_ball()
    names = {name: len(getattr(bpy.data, name)) for name in ("objects", "armatures", "actions", "meshes")}
    rest, motion = add(objects, rig=True)
    take_edits.duplicate(objects[0])
    own = objects[0].animate3d
    assert own.takes[0].rig != own.takes[1].rig and own.takes[0].rig.data == own.takes[1].rig.data
    own.takes[1].strength = 0.0
    np.testing.assert_allclose(look(objects), rest, atol=1e-5)
    own.active_index = 0
    assert follows(objects, rest, motion)
    own.active_index = 1
    takes.delete(objects[0])
    assert follows(objects, rest, motion)
    takes.delete(objects[0])
    assert {name: len(getattr(bpy.data, name)) for name in names} == names
    assert not objects[0].vertex_groups and not objects[0].modifiers and objects[0].parent is None


def test_a_copy_has_an_armature_of_its_own():
    objects = post_and_ball()
    rest, motion = add(objects, rig=True)
    copies = take_edits.to_copy(objects[0])
    assert {copy.parent for copy in copies} == {copies[0].animate3d.takes[0].rig}
    copies[0].parent.location.x += 9.0
    bpy.context.view_layer.update()
    assert follows(objects, rest, motion) and follows(copies, moved(rest, 9, 0), motion)


def test_pushed_to_the_nla_it_is_the_users():
    objects = post_and_ball()
    rest, motion = add(objects, rig=True)
    armature = objects[0].parent
    take_edits.push_to_nla(objects[0])
    assert len(armature.animation_data.nla_tracks) == 1 and objects[0].animate3d.active_index == -1
    assert follows(objects, rest, motion)


def test_what_was_moved_since_it_was_looked_at_moves_in_its_own_direction():
    """For keys and for bones; a turn and a shift while the job ran."""
    for rig in (False, True):
        objects = post_and_ball()
        subject, rest = subject_of(objects), look(objects)
        motion = bend(rest)
        places = [np.array(obj.matrix_world) for obj in objects]
        turn = np.array([(0, -1, 0, 4), (1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)], float)
        for obj in objects:
            obj.matrix_world = Matrix((turn @ np.array(obj.matrix_world)).tolist())
        bpy.context.view_layer.update()
        bones = make_rig(subject, motion) if rig else None
        takes.add(objects, subject, motion, Timing(FRAMES), "t", rest_frame=1, rig=bones, places=places)
        turned = protocol.Motion((motion.offsets @ turn[:3, :3].T).astype(np.float32))
        assert follows(objects, protocol.transform_points(turn, rest), turned, 0.05 if rig else 1e-4)


def test_applied_transforms_since_it_was_looked_at_change_nothing():
    objects = [scenes.cube("a"), scenes.cube("b", center=(3, 0, 0))]
    for obj in objects:
        obj.scale = (2, 2, 2)
    bpy.context.view_layer.update()
    places = [np.array(obj.matrix_world) for obj in objects]
    subject, rest = subject_of(objects), look(objects)
    motion = scenes.random_motion(subject, FRAMES)
    for obj in objects:
        obj.data.transform(obj.matrix_world)
        obj.scale = (1, 1, 1)
    bpy.context.view_layer.update()
    takes.add(objects, subject, motion, Timing(FRAMES), "t", rest_frame=1, places=places)
    assert follows(objects, rest, motion, 1e-4)


def test_refused_before_anything_changes():
    """Objects that were moved against each other since can't hang on the armature that was made for them."""
    objects = post_and_ball()
    subject, rest = subject_of(objects), look(objects)
    motion = bend(rest)
    places = [np.array(obj.matrix_world) for obj in objects]
    objects[0].location.x += 1.0
    bpy.context.view_layer.update()
    before = scenes.snapshot()
    with pytest.raises(protocol.UserError, match="moved against each other"):
        takes.add(objects, subject, motion, Timing(FRAMES), "t", 1, rig=make_rig(subject, motion), places=places)
    assert scenes.snapshot() == before


def test_from_a_script_with_the_real_backend(tmp_path, monkeypatch):
    """Asked for as a rig; then keys; and keys that become a rig without another video."""
    monkeypatch.setenv("ANIMATE3D_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(backend_process, "POLITE", 0)
    scenes.reset()
    bpy.ops.mesh.primitive_uv_sphere_add(segments=12, ring_count=8)
    obj = bpy.context.object
    assert bpy.ops.animate3d.animate(prompt="a ball bounces", output="RIG", frames=6) == {"FINISHED"}
    assert obj.parent.type == "ARMATURE" and obj.animate3d.active.output == "RIG" and obj.data.shape_keys is None
    bpy.ops.animate3d.take_output(output="KEYS")
    assert obj.parent is None and len(obj.data.shape_keys.key_blocks) == 6
    bpy.context.scene.frame_set(1)
    assert bpy.ops.animate3d.animate(prompt="a ball stretches", output="KEYS", frames=6) == {"FINISHED"}
    job = watch.queue().jobs[-1]
    video = (job.folder / "video" / "video.npz").stat().st_mtime_ns
    assert bpy.ops.animate3d.take_output(output="RIG") == {"FINISHED"}
    assert len(obj.animate3d.takes) == 2 and obj.parent.type == "ARMATURE" and obj.data.shape_keys is None
    assert (job.folder / "video" / "video.npz").stat().st_mtime_ns == video
    job.remove()
    takes.become(obj, "KEYS")
    take_edits.duplicate(obj)
    watch.close()
