"""The four views before the long work: what they show, and that they leave nothing behind."""

from __future__ import annotations

import time

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402
from PIL import Image  # noqa: E402
from test_blender_jobs import CHILD, select  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import backend_process, look, previews, results, watch  # noqa: E402
from backend import protocol  # noqa: E402


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMATE3D_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(backend_process, "POLITE", 0)
    monkeypatch.setattr(look, "SIZE", 32)
    animate3d_addon.register()
    scenes.reset()
    yield
    animate3d_addon.unregister()


def marked_cube():
    """Red towards -Y, green towards +X."""
    obj = scenes.cube()
    for color in ((1, 0, 0), (0, 1, 0), (0.5, 0.5, 0.5)):
        scenes.colored(obj, color)
    for polygon in obj.data.polygons:
        sides = {(0, -1, 0): 0, (1, 0, 0): 1}
        polygon.material_index = sides.get(tuple(round(x) for x in polygon.normal), 2)
    select(obj)
    return obj


def middle(folder, view):
    """The colour in the lower middle of a view, where the near side is."""
    picture = np.asarray(Image.open(protocol.Subject.image_path(folder, "condition", view)).convert("RGB"))
    return picture[17:20, 14:18].reshape(-1, 3).mean(axis=0) / 255.0


def test_another_blender_looks_at_what_was_chosen_as_the_front(tmp_path):
    marked_cube()
    before = scenes.snapshot()
    bpy.context.scene.animate3d.front = "POS_X"
    job = results.new_look(bpy.context, results.chosen_objects(bpy.context), tmp_path / "look")
    watch.show_look(look.Look.start(job, CHILD))
    deadline = time.monotonic() + 300
    while not watch.look.is_done:
        assert time.monotonic() < deadline
        watch.look.poll()
        time.sleep(0.02)
    assert watch.look.error is None
    green, red = middle(job.folder, 0), middle(job.folder, 3)
    assert green[1] > 0.5 > green[0] and red[0] > 0.5 > red[1]
    bpy.context.scene.animate3d.front = "NEG_Y"
    after = scenes.snapshot()
    assert {name for name in after if after[name] != before[name]} <= {"selected", "active"}
    pid = watch.look.process.pid
    watch.show_look(None)
    assert not job.folder.exists()
    watch_until_gone(pid)


def watch_until_gone(pid):
    import psutil

    assert psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 30)[1] == []


def test_the_operator_shows_them_without_a_prompt_and_replaces_the_last_ones(tmp_path):
    marked_cube()
    assert bpy.ops.animate3d.look() == {"FINISHED"}
    first = watch.look.job.folder
    assert middle(first, 0)[0] > 0.5
    assert bpy.ops.animate3d.look() == {"FINISHED"}
    assert not first.exists() and watch.look.job.folder.exists()
    assert bpy.ops.animate3d.close_look() == {"FINISHED"}
    assert watch.look is None and not list((tmp_path / "home" / "look").iterdir())


def test_nothing_is_left_where_nothing_can_be_seen(tmp_path):
    select(scenes.mesh_object("Nothing", []))
    before = scenes.snapshot()
    with pytest.raises(RuntimeError, match="no vertex"):
        bpy.ops.animate3d.look()
    assert scenes.snapshot() == before and not list((tmp_path / "home" / "look").iterdir())


def test_the_generated_video_as_pictures_for_the_panel(tmp_path):
    """Views 0 and 1 above 2 and 3; a frame's picture is made when it is its turn."""
    colors = np.uint8([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [9, 9, 9, 0]])  # the last is transparent
    frames = np.broadcast_to(colors[:, None, None, None], (4, 5, 8, 8, 4))
    protocol.Video(frames, "position").save(tmp_path)
    number = previews.icon(tmp_path)
    (picture,) = previews._icons.values()
    assert picture.icon_id == number == previews.icon(tmp_path)
    side = picture.image_size[0]
    pixels = np.reshape(picture.image_pixels_float, (side, side, 4))[::-1]  # Blender's first row is the lowest
    quarters = pixels[side // 4 :: side // 2, side // 4 :: side // 2, :3].reshape(4, 3)
    expected = np.float32([[255, 0, 0], [0, 255, 0], [0, 0, 255], 3 * [previews.GREY]]) / 255.0
    np.testing.assert_allclose(quarters, expected, atol=1e-6)


@pytest.mark.parametrize("frames", [np.zeros((4, 0, 8, 8, 3), np.uint8), np.zeros((2, 3), np.uint8)])
def test_a_video_that_is_none_is_not_shown(tmp_path, frames):
    protocol.Video(frames, "position").save(tmp_path)
    assert previews.icon(tmp_path) == 0
