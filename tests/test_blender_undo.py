"""One step of undo brings back what was, one of redo what came: for a finished job and for edits of its takes."""

from __future__ import annotations

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402
from backend_python import PYTHON  # noqa: E402
from test_blender_jobs import CHILD, new_job, run  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import backend_process, job_queue, watch  # noqa: E402

FRAME = 4  # on the timeline: where the second frame of the motion is


@pytest.fixture
def animated(tmp_path, tiny_weights, monkeypatch):
    """A job whose motion is done and waits for a cube; the undo history begins with the cube at rest."""
    monkeypatch.setenv("ANIMATE3D_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(backend_process, "POLITE", 0)
    animate3d_addon.register()
    scenes.reset()
    queue = job_queue.JobQueue(tmp_path / "jobs", lambda: PYTHON, lambda job: CHILD)
    monkeypatch.setattr(watch, "queue", lambda: queue)
    job = new_job(queue.root, str(tiny_weights))
    queue.add(job)
    run(queue, lambda: not queue.is_busy)
    bpy.ops.ed.undo_push(message="A cube at rest")
    yield job
    queue.close()
    animate3d_addon.unregister()


def look() -> np.ndarray:
    """World vertices of the cube while it moves."""
    bpy.context.scene.frame_set(FRAME)
    return scenes.world_vertices(bpy.data.objects["Cube"])


def do(operator, **options) -> None:
    """As a button does it: as a step of the undo history."""
    assert operator("EXEC_DEFAULT", True, **options) == {"FINISHED"}


def test_undo_and_redo(animated):
    rest = look()
    do(bpy.ops.animate3d.apply_job, job=animated.name)
    moved = look()
    assert np.abs(moved - rest).max() > 1e-6 and len(bpy.data.objects["Cube"].data.shape_keys.key_blocks) == 4

    bpy.ops.ed.undo()
    assert bpy.data.objects["Cube"].data.shape_keys is None and not bpy.data.objects["Cube"].animate3d.takes
    assert not bpy.data.actions
    np.testing.assert_array_equal(look(), rest)
    bpy.ops.ed.redo()
    np.testing.assert_array_equal(look(), moved)

    do(bpy.ops.animate3d.take_duplicate)
    bpy.data.objects["Cube"].animate3d.takes[1].strength = 0.0
    bpy.ops.ed.undo_push(message="Strength")
    np.testing.assert_allclose(look(), rest, atol=1e-6)
    do(bpy.ops.animate3d.take_delete)
    bpy.ops.ed.undo()
    assert [take.strength for take in bpy.data.objects["Cube"].animate3d.takes] == [1.0, 0.0]
    bpy.ops.ed.undo()
    bpy.ops.ed.undo()
    assert len(bpy.data.objects["Cube"].animate3d.takes) == 1
    np.testing.assert_allclose(look(), moved, atol=1e-6)
