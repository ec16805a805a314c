"""Objects of every kind through the interface: looked at, and moved exactly, or refused in a sentence that changes
nothing. What the backend would answer is made up; everything that Blender does is real."""

from __future__ import annotations

import functools

import numpy as np
import psutil
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402
from test_blender_jobs import select  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import meshes, results  # noqa: E402
from animate3d_addon.temporary import temporary_scene  # noqa: E402
from backend import protocol  # noqa: E402


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMATE3D_HOME", str(tmp_path / "home"))
    small = functools.partial(results.capture.CaptureSettings, condition_size=16, position_samples=1)
    monkeypatch.setattr(results.capture, "CaptureSettings", small)
    animate3d_addon.register()
    scenes.reset()
    yield
    animate3d_addon.unregister()


def sheared():
    return scenes.set_matrix(scenes.cube(), np.array([[1, 0.7, 0, 3], [0, -2, 0.3, 0], [0.2, 0, 0.5, 1], [0, 0, 0, 1]]))


def flat():
    obj = scenes.cube()
    obj.scale = (1, 0, 1)
    return obj


def with_keys():
    """Keys that move by themselves, one of them called like ours, and one pinned."""
    obj = scenes.cube()
    obj.shape_key_add(name="Basis")
    for name in ("Animate3D 001", "Smile"):
        key = obj.shape_key_add(name=name)
        key.points[0].co.x -= 0.5
        key.value = 0.0
        key.keyframe_insert("value", frame=1)
        key.value = 1.0
        key.keyframe_insert("value", frame=30)
    obj.active_shape_key_index, obj.show_only_shape_key = 2, True
    return obj


def keyframed():
    obj = scenes.cube()
    for frame, place in ((1, (0, 0, 0)), (20, (5, 2, 1))):
        obj.location, obj.rotation_euler = place, place
        obj.keyframe_insert("location", frame=frame)
        obj.keyframe_insert("rotation_euler", frame=frame)
    return obj


def driven():
    obj = scenes.cube()
    curve = obj.driver_add("location", 0)
    curve.driver.expression = "3.0"
    obj.shape_key_add(name="Basis")
    key = obj.shape_key_add(name="Driven")
    key.points[0].co.x -= 0.5
    key.driver_add("value").driver.expression = "0.5"
    return obj


def constrained():
    obj, target = scenes.cube(), scenes.add(bpy.data.objects.new("Target", None))
    target.location, target.rotation_euler = (2, 3, 4), (0.3, 0.5, 0.7)
    obj.constraints.new("COPY_LOCATION").target = target
    obj.constraints.new("COPY_ROTATION").target = target
    return obj


def child_of_a_moving_parent():
    obj, parent = scenes.cube(), scenes.add(bpy.data.objects.new("Parent", None))
    obj.parent = parent
    for frame, place in ((1, 0.0), (20, 4.0)):
        parent.location.x = place
        parent.keyframe_insert("location", frame=frame)
    return obj


def subdivided():
    obj = scenes.cube()
    obj.modifiers.new("Subdivision", "SUBSURF")
    return obj


def shared_by_six():
    obj = scenes.cube()
    for number in range(5):
        other = scenes.add(bpy.data.objects.new(f"Other {number}", obj.data))
        other.location.x = 3 * number + 3
    return obj


def in_edit_mode():
    obj = scenes.cube()
    select(obj)
    bpy.ops.object.mode_set(mode="EDIT")
    return obj


def hidden_from_renders():
    obj = scenes.cube()
    obj.hide_render = True
    return obj


def without_material():
    obj = scenes.cube()
    obj.data.materials.append(None)
    missing = scenes.colored(obj, (1, 0, 0)).data.materials[1]
    node = missing.node_tree.nodes.new("ShaderNodeTexImage")
    node.image = bpy.data.images.new("Gone", 4, 4)
    node.image.source, node.image.filepath = "FILE", "//gone.png"
    return obj


def with_invalid_weights():
    obj = scenes.rigged()
    obj.vertex_groups[0].add([0, 1], float("nan"), "REPLACE")
    return obj


def named(name):
    return lambda: scenes.cube(name)


MOVED = {
    "sheared, mirrored, under a parent": sheared,
    "a scale of zero": flat,
    "keys of its own": with_keys,
    "keyframed": keyframed,
    "driven": driven,
    "constrained": constrained,
    "child of a moving parent": child_of_a_moving_parent,
    "rigged and posed": scenes.rigged,
    "invalid skin weights": with_invalid_weights,
    "six share its mesh": shared_by_six,
    "in edit mode": in_edit_mode,
    "hidden from renders": hidden_from_renders,
    "no image, an empty slot": without_material,
    "emoji": named("仙人掌 🌵"),
    "quotes, slashes, braces": named('"a/b\\c" {d} %s'),
    "63 bytes": named("x" * 63),
}


def local(obj):
    """[V, 3]: the object as it looks at the current frame, in its own space."""
    with temporary_scene() as scene:
        (piece,) = meshes.evaluate([obj], scene, bpy.context.scene.frame_current_final)
        return piece.vertices


def made_up_motion(job):
    subject = protocol.Subject.load(job.folder)
    motion = scenes.random_motion(subject)
    motion.save(job.folder)
    job.become("ready")
    return motion


@pytest.mark.parametrize("kind", MOVED)
def test_it_moves_as_the_motion_says(kind, tmp_path):
    """Whatever else moves it goes on; at the first frame it looks as before; nothing is left beside the .blend."""
    (tmp_path / "scene").mkdir()
    processes = set(psutil.Process().children())  # of tests before this one
    obj = MOVED[kind]()
    select(obj)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene" / "file.blend"))
    obj = bpy.context.view_layer.objects.active
    frames = (1, 4, 7, 10)
    still = []
    for frame in frames:
        bpy.context.scene.frame_set(frame)
        still.append(local(obj))
    bpy.context.scene.frame_set(1)
    matrix = np.array(obj.matrix_world)
    bpy.context.scene.animate3d.prompt = "it sways"
    job = results.new_job(bpy.context, results.chosen_objects(bpy.context), tmp_path / "jobs")
    results.capture_here(job, results.find_objects(job.plan))
    motion = made_up_motion(job)
    (moved,) = results.apply(job)
    assert moved == obj and obj.mode == "OBJECT"
    inverse = np.linalg.pinv(matrix[:3, :3])
    for frame, rest, offsets in zip(frames, still, motion.offsets, strict=True):
        bpy.context.scene.frame_set(frame)
        expected = rest + offsets @ inverse.T
        np.testing.assert_allclose(local(obj) @ matrix[:3, :3].T, expected @ matrix[:3, :3].T, atol=2e-4)
    others = [other for other in bpy.data.objects if other != obj and other.type == "MESH"]
    assert all(other.data != obj.data and other.data.shape_keys is None for other in others)
    assert [path.name for path in (tmp_path / "scene").iterdir()] == ["file.blend"]
    assert set(psutil.Process().children()) <= processes


def curve():
    bpy.ops.curve.primitive_bezier_circle_add()
    bpy.context.object.data.bevel_depth = 0.2
    return bpy.context.object


def text():
    bpy.ops.object.text_add()
    return bpy.context.object


def metaball():
    bpy.ops.object.metaball_add(type="BALL")
    return bpy.context.object


def instance():
    collection = bpy.data.collections.new("Things")
    collection.objects.link(bpy.data.objects.new("Inside", scenes.cube("Model").data))
    empty = scenes.add(bpy.data.objects.new("Copy", None))
    empty.instance_type, empty.instance_collection = "COLLECTION", collection
    return empty


def nobody():
    scenes.cube()
    return scenes.add(bpy.data.objects.new("Nobody", None))


def unselected():
    obj = scenes.cube()
    select(obj)
    obj.select_set(False)


def linked(override, folder):
    scenes.cube("Linked")
    bpy.ops.wm.save_as_mainfile(filepath=str(folder / "library.blend"), copy=True)
    scenes.reset()
    with bpy.data.libraries.load(str(folder / "library.blend"), link=True) as (_, wanted):
        wanted.objects = ["Linked"]
    obj = scenes.add(bpy.data.objects["Linked"])
    return obj.override_create(remap_local_usages=True) if override else obj


REFUSED = {  # words of the sentence, and the button
    "a curve": (curve, "is not a mesh", "CONVERT"),
    "a text": (text, "is not a mesh", "CONVERT"),
    "a metaball": (metaball, "is not a mesh", "CONVERT"),
    "a collection instance": (instance, "collection instance", "REAL"),
    "an empty": (nobody, "it is an empty", "SELECT"),
    "nothing": (unselected, "Nothing is selected", "SELECT"),
    "linked": (functools.partial(linked, False), "linked from another file", "LOCAL"),
    "overridden": (functools.partial(linked, True), "linked from another file", "LOCAL"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_in_a_sentence_and_a_button_mends_it(kind, tmp_path):
    make, words, mend = REFUSED[kind]
    obj = make(tmp_path) if kind in ("linked", "overridden") else make()
    if obj is not None:
        select(obj)
    before = scenes.snapshot()
    with pytest.raises(RuntimeError, match=words):
        bpy.ops.animate3d.animate(prompt="it sways")
    assert scenes.snapshot() == before and not list((tmp_path / "home").rglob("job.json"))
    with pytest.raises(meshes.Mendable) as caught:
        results.chosen_objects(bpy.context)
    assert caught.value.mend == mend
    assert bpy.ops.animate3d.mend(what=mend) == {"FINISHED"}
    bpy.context.view_layer.update()
    assert results.chosen_objects(bpy.context)


def test_modifiers_that_make_vertices_leave_a_choice(tmp_path):
    select(subdivided())
    before = scenes.snapshot()
    with pytest.raises(RuntimeError, match="change its number of vertices"):
        bpy.ops.animate3d.animate(prompt="it sways")
    assert scenes.snapshot() == before


def test_nothing_to_select_is_told():
    with pytest.raises(RuntimeError, match="no object with a surface"):
        bpy.ops.animate3d.mend(what="SELECT")


def test_hidden_objects_can_not_be_selected_and_so_not_be_animated():
    obj = scenes.cube()
    select(obj)
    obj.hide_set(True)
    with pytest.raises(RuntimeError, match="Nothing is selected"):
        bpy.ops.animate3d.animate(prompt="it sways")
