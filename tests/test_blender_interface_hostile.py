"""What happens to objects, processes and prompts while the interface works: a result or one sentence, no damage."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402
from backend_python import PYTHON  # noqa: E402
from test_blender_jobs import CHILD, new_job, run, select  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import backend_process, job_queue, jobs, models, results, watch  # noqa: E402
from animate3d_addon.shared import understand  # noqa: E402
from backend import protocol  # noqa: E402


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMATE3D_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(backend_process, "POLITE", 0)
    animate3d_addon.register()
    scenes.reset()
    yield
    animate3d_addon.unregister()


@pytest.fixture
def queue(tmp_path):
    made = job_queue.JobQueue(tmp_path / "jobs", lambda: PYTHON, lambda job: CHILD)
    yield made
    made.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_weights) -> Path:
    """The folder of a job of a cube that is done."""
    polite, backend_process.POLITE = backend_process.POLITE, 0
    animate3d_addon.register()
    queue = job_queue.JobQueue(tmp_path_factory.mktemp("done"), lambda: PYTHON, lambda job: CHILD)
    try:
        scenes.reset()
        job = new_job(queue.root, str(tiny_weights))
        queue.add(job)
        run(queue, lambda: not queue.is_busy)
        assert job.state == "ready"
    finally:
        queue.close()
        animate3d_addon.unregister()
        backend_process.POLITE = polite
    return job.folder


@pytest.fixture
def ready(finished, tmp_path) -> jobs.Job:
    """A job that is done, of a Blender that was closed since."""
    return jobs.Job.load(Path(shutil.copytree(finished, tmp_path / "jobs" / finished.name)))


def refused(words: str, **options) -> None:
    """The button's operator says so, and nothing in the file, and no file in the jobs' folder, comes of it."""
    before = scenes.snapshot()
    with pytest.raises(RuntimeError, match=words) as caught:
        bpy.ops.animate3d.animate(**{"prompt": "it sways", **options})
    assert "Traceback" not in str(caught.value)
    after = scenes.snapshot()
    assert {name for name in after if after[name] != before[name]} <= {"selected", "active"}
    assert not any(job.state in ("ready", "applied", *jobs.UNFINISHED) for job in watch.queue().jobs)


# Objects


def linked(tmp_path: Path, override: bool) -> bpy.types.Object:
    scenes.cube("Linked")
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "library.blend"), copy=True)
    scenes.reset()
    with bpy.data.libraries.load(str(tmp_path / "library.blend"), link=True) as (_, wanted):
        wanted.objects = ["Linked"]
    obj = bpy.data.objects["Linked"]
    scenes.add(obj)
    if override:
        obj = obj.override_create(remap_local_usages=True)
    select(obj)
    return obj


@pytest.mark.parametrize("override", [False, True])
def test_linked_and_overridden_objects_are_refused(tmp_path, override):
    linked(tmp_path, override)
    refused("linked from another file")


@pytest.mark.parametrize("coordinate", [np.nan, np.inf])
def test_positions_that_are_no_numbers(coordinate):
    select(scenes.mesh_object("Odd", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (coordinate, 0, 0)], [(0, 1, 2)]))
    refused("no valid position")


def test_they_are_told_by_the_background_blender_too(queue, tiny_weights):
    odd = scenes.mesh_object("Odd", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (np.nan, 0, 0)], [(0, 1, 2)])
    job = new_job(queue.root, str(tiny_weights), odd)
    queue.add(job)
    run(queue, lambda: not queue.is_busy)
    assert job.state == "failed" and "no valid position" in job.error.message


def test_an_armature_that_is_there_is_no_place_for_another():
    select(scenes.rigged())
    refused("already hangs on an armature", output="RIG")


def test_absolute_shape_keys():
    obj = scenes.cube()
    obj.shape_key_add(name="Basis")
    obj.data.shape_keys.use_relative = False
    select(obj)
    refused("absolute shape keys")


@pytest.mark.parametrize("name", ["仙人掌 🌵", "a/b\\c", '"quoted" {braces} %s', "x" * 63])
def test_names_of_every_kind_go_the_whole_road(tmp_path, name):
    """As far as a name goes: into the copy's file, through the other Blender, and back to the object."""
    obj = scenes.cube(name)
    other = scenes.cube("Other", center=(3, 0, 0))
    select(obj, other)
    bpy.context.scene.animate3d.prompt = "it sways"
    job = results.new_job(bpy.context, results.chosen_objects(bpy.context), tmp_path / "jobs")
    results.write_copy(job, results.find_objects(job.plan), bpy.context.scene)
    task = jobs.CaptureTask.load(job.folder)
    assert set(task.names) == {obj.name, "Other"}
    from animate3d_addon import capture_child

    loaded = capture_child.load_objects(job.folder / jobs.COPY, task)
    assert [each.name for each in loaded] == list(task.names)


# Processes


def test_the_object_is_deleted_while_the_job_runs(ready):
    scenes.cube("Other")
    before = scenes.snapshot()
    with pytest.raises(protocol.UserError, match="no longer there"):
        results.apply(ready)
    assert scenes.snapshot() == before and ready.state == "ready"
    obj = scenes.cube("Another")
    results.apply(ready, [obj])  # it can go to another object of the same vertices
    assert len(obj.animate3d.takes) == 1


def test_the_object_is_edited_while_the_job_runs(ready):
    scenes.mesh_object("Cube", scenes.CUBE[:5], [(0, 1, 3, 2)])
    before = scenes.snapshot()
    with pytest.raises(protocol.UserError, match="had 8 vertices and has 5 now"):
        results.apply(ready)
    assert scenes.snapshot() == before


def test_the_object_is_in_edit_mode_when_the_motion_comes(ready):
    obj = scenes.cube()
    select(obj)
    bpy.ops.object.mode_set(mode="EDIT")
    results.apply(ready)
    assert obj.mode == "OBJECT" and len(obj.animate3d.takes) == 1


def test_the_file_is_opened_again_while_the_job_runs(queue, tiny_weights, tmp_path):
    """The job goes on; its motion waits for the button, and finds the object by its name."""
    obj = scenes.cube()
    job = new_job(queue.root, str(tiny_weights), obj)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "file.blend"))
    queue.add(job)
    run(queue, lambda: job.stage == "capture")
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "file.blend"))
    assert not results.is_of_this_session(job.plan)
    run(queue, lambda: not queue.is_busy)
    assert job.state == "ready"
    results.apply(job)
    assert len(bpy.data.objects["Cube"].animate3d.takes) == 1


@pytest.mark.parametrize("stage", ["capture", "video"])
def test_switched_off_while_a_job_runs(tmp_path, tiny_weights, stage):
    """No process is left, and the job can go on another time."""
    queue = job_queue.JobQueue(tmp_path / "jobs", lambda: PYTHON, lambda job: CHILD)
    job = new_job(queue.root, str(tiny_weights))
    queue.add(job)
    run(queue, lambda: job.stage == stage)
    pids = [process.pid for process in (queue._backend, queue._capture) if process is not None]
    queue.close()
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], 30)
    assert pids and not any(psutil.pid_exists(pid) for pid in pids)
    (again,) = jobs.load_all(tmp_path / "jobs")
    assert again.state == "cancelled" and again.error.kind == "cancelled"


def test_the_job_folder_goes_while_the_job_runs(queue, tiny_weights):
    job = new_job(queue.root, str(tiny_weights))
    queue.add(job)
    run(queue, lambda: job.stage == "video")
    shutil.rmtree(job.folder, ignore_errors=True)
    run(queue, lambda: not queue.is_busy)
    assert job.state == "failed" and "Traceback" not in job.error.message
    queue.remove(job)
    assert not job.folder.exists()


@pytest.mark.parametrize("name", ["motion.npz", "subject/subject.json", "subject/mesh.npz"])
@pytest.mark.parametrize("length", [0, 40])
def test_a_result_that_is_half_written_is_a_sentence(ready, name, length):
    (ready.folder / name).write_bytes((ready.folder / name).read_bytes()[:length])
    scenes.cube()
    before = scenes.snapshot()
    with pytest.raises(protocol.UserError, match="job folder"):
        results.apply(ready)
    assert scenes.snapshot() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "ready"}', '{"state": "??", "plan": {}}', "null"])
def test_records_that_make_no_sense_are_left_alone(ready, content):
    """A folder that isn't a job's, or a newer version's: not shown, and not deleted."""
    (ready.folder / jobs.RECORD).write_text(content)
    assert jobs.load_all(ready.folder.parent) == []
    assert (ready.folder / "motion.npz").is_file()


def test_a_backend_that_is_no_backend(tmp_path, tiny_weights):
    """The chosen Python can't be started, or lacks the packages."""
    for python, words in ((str(tmp_path / "none"), "can't be started"), (shutil.which("true"), "stopped unexpectedly")):
        queue = job_queue.JobQueue(tmp_path / "jobs", lambda python=python: python, lambda job: CHILD)
        job = new_job(queue.root, str(tiny_weights), scenes.cube())
        queue.add(job)
        run(queue, lambda queue=queue: not queue.is_busy)
        queue.close()
        assert job.state == "failed" and words in job.error.message
        scenes.reset()


def test_no_tick_waits(queue, tiny_weights):
    """Whatever a job does, the window's timer is never held up: the time of this thread, which a busy machine can't
    stretch."""
    job = new_job(queue.root, str(tiny_weights))
    queue.add(job)
    worst = 0.0
    deadline = time.monotonic() + 240
    while queue.is_busy and time.monotonic() < deadline:
        began = time.thread_time()
        queue.tick()
        worst = max(worst, time.thread_time() - began)
        time.sleep(0.01)
    assert job.state == "ready" and worst < 0.2


# Prompts


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "The prompt is empty"),
        (" \n\t ", "The prompt is empty"),
        ("a cube sways " * 800, "10399 characters long, but 500 is the limit"),
    ],
    ids=["empty", "blank", "long"],
)
def test_prompts_that_nothing_can_be_made_of(prompt, words):
    select(scenes.cube())
    refused(words, prompt=prompt)


def test_a_prompt_over_several_lines_with_quotes_is_one_line(tmp_path):
    select(scenes.cube())
    bpy.context.scene.animate3d.prompt = 'a "cube" 🧊\n sways\tgently'
    job = results.new_job(bpy.context, results.chosen_objects(bpy.context), tmp_path / "jobs")
    assert job.title == 'a "cube" 🧊 sways gently'
    assert jobs.Job.load(job.folder).title == job.title


@pytest.mark.parametrize("prompt", ['🦊 立方体が "揺れる"\'); --', "a cube explodes", "{0} %s \\\\n"])
def test_a_motion_that_the_starter_does_not_know_has_a_near_one(prompt, tmp_path):
    """Said in the panel while the sentence is typed, before the long work; the backend says it with the job."""
    motions = models.card("starter", tmp_path).motions
    assert "“" in understand(prompt, motions).notice
    select(scenes.cube())
    bpy.context.scene.animate3d.prompt = prompt
    results.chosen_objects(bpy.context)
    assert results.new_job(bpy.context, results.chosen_objects(bpy.context), tmp_path / "jobs").title == prompt
