"""Jobs of the interface: the queue with real processes, what survives, and the operators as scripts call them."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402
from backend_python import PYTHON  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import backend_process, estimate, job_queue, jobs, models, prompts, results, takes, watch  # noqa: E402
from animate3d_addon.shared import understand  # noqa: E402
from animate3d_addon.timing import Timing  # noqa: E402
from backend import protocol  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CHILD = [sys.executable, str(ROOT / "animate3d_addon" / "capture_child.py")]  # the bpy package is Blender enough


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMATE3D_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(backend_process, "POLITE", 0)  # on a busy machine a polite process starves
    animate3d_addon.register()
    scenes.reset()
    yield
    animate3d_addon.unregister()


@pytest.fixture
def queue(tmp_path):
    made = job_queue.JobQueue(tmp_path / "jobs", lambda: PYTHON, lambda job: CHILD)
    yield made
    made.close()


def select(*objects):
    bpy.context.view_layer.update()  # which puts new objects into the layer
    for obj in bpy.context.view_layer.objects:
        obj.select_set(obj in objects)
    bpy.context.view_layer.objects.active = objects[0]


def new_job(root: Path, weights: str, obj=None, **plan) -> jobs.Job:
    """A job of a cube as the button makes it, with a model that knows nothing but is quick."""
    obj = obj or scenes.cube()
    select(obj)
    bpy.context.scene.animate3d.prompt = "a cube sways"
    job = results.new_job(bpy.context, results.chosen_objects(bpy.context), root)
    job.settings = replace(job.settings, weights=weights, frames=4, device="cpu")
    job.settings.save(job.folder)
    job.plan = replace(job.plan, **plan)
    job.save()
    results.write_copy(job, [obj], bpy.context.scene)
    return job


def run(queue, until, seconds=300.0):
    """Ticks as the timer does; returns the stages that were seen."""
    stages, deadline = [], time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, [(job.state, job.stage, job.error) for job in queue.jobs]
        queue.tick()
        if queue.current is not None and queue.current.stage not in stages:
            stages.append(queue.current.stage)
        time.sleep(0.01)
    return [stage for stage in stages if stage]


def test_a_job_goes_its_road_in_child_processes(queue, tiny_weights):
    """Captured by another Blender, run by the backend; the file that is open sees none of it."""
    obj = scenes.cube()
    obj.location = (5, 0, 0)
    bpy.context.view_layer.update()
    before = scenes.snapshot()
    job = new_job(queue.root, str(tiny_weights), obj)
    queue.add(job)
    stages = run(queue, lambda: not queue.is_busy)
    assert job.error is None and job.state == "ready"
    assert stages[0] == "capture" and stages[-1] == "motion"
    after = scenes.snapshot()
    assert {name for name in after if after[name] != before[name]} <= {"selected", "active"}
    assert protocol.Subject.load(job.folder).object_names == ("Cube",)
    obj.name = "Renamed meanwhile"
    results.apply(job)
    assert [take.name for take in obj.animate3d.takes] == ["a cube sways"]
    assert 0.0 < queue.estimate.share <= 1.0


def test_the_copy_for_the_other_blender_lets_nothing_be_drawn_anew(tmp_path):
    obj = scenes.cube()
    job = new_job(tmp_path / "jobs", "starter", obj)
    bpy.context.view_layer.update()
    updates = []
    bpy.app.handlers.depsgraph_update_post.append(lambda *arguments: updates.append(arguments))
    results.write_copy(job, [obj], bpy.context.scene)
    bpy.context.view_layer.update()
    bpy.app.handlers.depsgraph_update_post.pop()
    assert not updates


def test_two_jobs_wait_for_each_other_and_use_one_backend(queue, tiny_weights):
    first, second = (new_job(queue.root, str(tiny_weights), scenes.cube(name)) for name in ("a", "b"))
    queue.add(first)
    queue.add(second)
    queue.tick()
    assert (first.state, second.state) == ("working", "waiting")
    run(queue, lambda: first.state == "ready")
    pid = queue._backend.pid
    run(queue, lambda: second.state == "ready")
    assert queue._backend.pid == pid


@pytest.mark.parametrize("stage", ["capture", "motion"])
def test_cancel_then_go_on(queue, tiny_weights, stage):
    job = new_job(queue.root, str(tiny_weights))
    queue.add(job)
    run(queue, lambda: job.stage == stage)
    queue.cancel(job)
    run(queue, lambda: not queue.is_busy, seconds=20)
    assert job.state == "cancelled" and job.error.kind == "cancelled"
    queue.add(job)
    run(queue, lambda: not queue.is_busy)
    assert job.state == "ready"


def test_a_job_outlives_its_blender(queue, tiny_weights):
    """Another queue of the same folder, as after a restart: what was done is there, what was not can go on."""
    done, stopped = new_job(queue.root, str(tiny_weights)), new_job(queue.root, str(tiny_weights), scenes.cube("b"))
    queue.add(done)
    run(queue, lambda: not queue.is_busy)
    queue.add(stopped)
    assert [job.name for job in jobs.load_all(queue.root)] == [done.name]  # the other one is held by us
    stopped.release()  # what the system does when a process ends
    later = jobs.load_all(queue.root)
    assert [job.state for job in later] == ["ready", "cancelled"]
    assert "closed while this job ran" in later[1].error.message
    scenes.reset()
    results.file_opened()
    with pytest.raises(protocol.UserError, match="no longer there"):
        results.apply(later[0])
    obj = scenes.cube()  # the file opened again: found by its name
    results.apply(later[0])
    assert len(obj.animate3d.takes) == 1


def test_what_is_wrong_is_told_and_the_next_job_runs(queue, tiny_weights):
    bad = new_job(queue.root, str(tiny_weights))
    bad.settings = replace(bad.settings, weights="/nowhere")
    bad.settings.save(bad.folder)
    good = new_job(queue.root, str(tiny_weights), scenes.cube("b"))
    queue.add(bad)
    queue.add(good)
    run(queue, lambda: not queue.is_busy)
    assert bad.state == "failed" and "no weights" in bad.error.message
    assert good.state == "ready"
    assert jobs.Job.load(bad.folder).error.message == bad.error.message


def test_the_backend_is_killed(queue, tiny_weights):
    job = new_job(queue.root, str(tiny_weights))
    queue.add(job)
    run(queue, lambda: job.stage == "video")
    os.kill(queue._backend.pid, 9)
    run(queue, lambda: not queue.is_busy, seconds=20)
    assert job.state == "failed" and "stopped unexpectedly" in job.error.message
    queue.add(job)
    run(queue, lambda: not queue.is_busy)
    assert job.state == "ready"


def test_an_idle_backend_is_let_go(tmp_path, tiny_weights):
    warm = [60.0]
    queue = job_queue.JobQueue(tmp_path / "jobs", lambda: PYTHON, lambda job: CHILD, warm_seconds=lambda: warm[0])
    queue.add(new_job(queue.root, str(tiny_weights)))
    run(queue, lambda: not queue.is_busy)
    queue.tick()
    assert queue.is_warm
    warm[0] = 0.0
    queue.tick()
    assert not queue.is_warm


def test_the_front_turns_the_subject(tmp_path):
    """An object that looks along +X, captured so, is the same subject as one that looks along -Y."""
    box = scenes.cube("box")
    box.scale = (1, 2, 3)
    bpy.context.view_layer.update()
    ahead = results.capture.describe(_pieces(box), results.capture.CaptureSettings())
    box.rotation_euler.z = np.pi / 2
    bpy.context.view_layer.update()
    turned = results.capture.describe(_pieces(box), results.capture.CaptureSettings(front=90.0))
    np.testing.assert_allclose(turned.vertices, ahead.vertices, atol=1e-6)


def _pieces(obj):
    from animate3d_addon.meshes import evaluate
    from animate3d_addon.temporary import temporary_scene

    with temporary_scene() as scene:
        return evaluate([obj], scene, 1)


def test_the_operator_from_a_script():
    """The real starter model, from one line to shape keys; the nearest motion, and a warning, where it knows none."""
    obj = scenes.cube()
    select(obj)
    assert bpy.ops.animate3d.animate(prompt="a cube bounces", start=10, loop="CYCLE") == {"FINISHED"}
    assert len(obj.data.shape_keys.key_blocks) == 16 and obj.animate3d.takes[0].start == 10
    job = watch.queue().jobs[-1]
    assert job.state == "applied"
    assert bpy.ops.animate3d.animate(prompt="a cube explodes", frames=4) == {"FINISHED"}
    assert "“explodes”" in watch.queue().jobs[-1].notice
    assert jobs.Job.load(watch.queue().jobs[-1].folder).notice == watch.queue().jobs[-1].notice
    bpy.ops.animate3d.apply_job(job=job.name)
    assert len(obj.animate3d.takes) == 3
    bpy.ops.animate3d.remove_job(job=job.name)
    assert not job.folder.exists()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: None, "Nothing is selected"),
        (lambda: scenes.add(bpy.data.objects.new("Nobody", None)), "has no mesh"),
        (lambda: scenes.mesh_object("Nothing", []), "no vertex"),
    ],
)
def test_what_can_not_be_animated_is_refused_in_a_sentence(make, sentence):
    obj = make()
    if obj is not None:
        select(obj)
    before = scenes.snapshot()
    with pytest.raises(RuntimeError, match=sentence):
        bpy.ops.animate3d.animate(prompt="it sways")
    assert scenes.snapshot() == before


def test_every_property_and_operator_explains_itself():
    from animate3d_addon import mends, operators, properties, setup_operators, splat_operators, take_operators

    modules = (operators, splat_operators, mends, take_operators, setup_operators)
    for cls in (*properties.CLASSES, *(cls for module in modules for cls in module.CLASSES)):
        inherited = cls.bl_rna.base.properties.keys()
        for prop in cls.bl_rna.properties:
            assert prop.description or prop.identifier in inherited, (cls, prop.identifier)
    assert all(cls.__doc__ for module in modules for cls in module.CLASSES)


def test_the_time_left_grows_on_a_machine_that_is_busy(tmp_path, monkeypatch):
    """What is still to come is judged by how long the stages before have taken, not by a quiet machine alone."""
    clock = [0.0]
    monkeypatch.setattr(estimate.time, "monotonic", lambda: clock[0])
    watched = estimate.Estimate(tmp_path / "seconds.json", "a kind")
    watched.step("capture", 0, 1)
    quiet = watched.seconds_left
    clock[0] = 10 * estimate.FIRST_GUESS["capture"]
    watched.step("capture", 1, 1)
    watched.step("backend", 0, 1)
    assert 0.0 < watched.share < 0.7 and watched.seconds_left > 5 * quiet


def test_prompts_are_remembered(tmp_path):
    for text in ("it sways", "it nods", "it sways"):
        prompts.remember(tmp_path, text)
    assert prompts.history(tmp_path) == ["it sways", "it nods"]
    (tmp_path / prompts.FILE).write_text("{broken")
    assert prompts.history(tmp_path) == []


def test_what_the_starter_knows(tmp_path):
    card = models.card("starter", tmp_path)
    examples = models.example_prompts(card)
    assert card.appearance == "position" and len(examples) == len(card.motions) > 3
    assert not any(understand(example, card.motions).notice for example in examples)
    with pytest.raises(protocol.UserError, match="not installed"):
        models.card("animate3d", tmp_path)


def test_switched_on_and_off_leaves_nothing(tmp_path):
    animate3d_addon.unregister()
    assert not hasattr(bpy.types.Scene, "animate3d") and not hasattr(bpy.types, "ANIMATE3D_PT_main")
    assert not any("animate3d" in str(each) for each in bpy.app.handlers.load_post)
    animate3d_addon.register()


def subdivided() -> bpy.types.Object:
    obj = scenes.cube()
    obj.modifiers.new("Subdivision", "SUBSURF")
    bpy.context.view_layer.update()
    select(obj)
    return obj


def test_modifiers_that_make_vertices_leave_the_user_a_choice(queue, tiny_weights):
    """A plain copy in its place, or the mesh below, on whose motion the modifiers act; before that, a sentence."""
    obj = subdivided()
    with pytest.raises(results.OtherVertices, match="change its number of vertices"):
        results.chosen_objects(bpy.context)
    assert bpy.ops.animate3d.copy_applied() == {"FINISHED"}
    (copy,) = results.chosen_objects(bpy.context)
    assert len(copy.data.vertices) == 26 and not copy.modifiers and obj.hide_get() and len(obj.modifiers) == 1
    obj.hide_set(False)
    select(obj)
    bpy.context.scene.animate3d.below = True
    job = new_job(queue.root, str(tiny_weights), obj)
    queue.add(job)
    run(queue, lambda: not queue.is_busy)
    assert protocol.Subject.load(job.folder).object_counts == (8,)
    results.apply(job)
    assert len(obj.data.shape_keys.key_blocks) == 4 and obj.modifiers[0].show_viewport
    bpy.context.scene.frame_set(4)
    assert len(scenes.world_vertices(obj)) == 26
    moved = protocol.Motion.load(job.folder).offsets[1]
    key = np.array([point.co for point in obj.data.shape_keys.key_blocks[1].points])
    np.testing.assert_allclose(key - scenes.CUBE, moved, atol=1e-5)


def test_a_new_job_looks_at_the_rest_pose_whatever_take_is_on(queue, tiny_weights):
    """Prompts are tried one after the other, with the timeline anywhere."""
    obj = scenes.cube()
    subject = scenes.subject_of([obj], queue.root / "before")
    takes.add([obj], subject, scenes.random_motion(subject), Timing(4), "first", rest_frame=1)
    bpy.context.scene.frame_set(7)
    assert np.abs(scenes.world_vertices(obj) - scenes.CUBE).max() > 0.01
    job = new_job(queue.root, str(tiny_weights), obj)
    assert not any(key.mute for key in obj.data.shape_keys.key_blocks)
    queue.add(job)
    run(queue, lambda: not queue.is_busy)
    seen = protocol.Subject.load(job.folder)
    np.testing.assert_allclose(protocol.transform_points(seen.to_world, seen.vertices), scenes.CUBE, atol=1e-5)
    results.apply(job)
    bpy.context.scene.frame_set(7)
    moved = scenes.CUBE + protocol.Motion.load(job.folder).offsets[2]
    np.testing.assert_allclose(scenes.world_vertices(obj), moved, atol=1e-5)
