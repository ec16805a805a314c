"""Gaussian splats inside Blender: imported as points with all their numbers, animated, and saved as frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402

import animate3d_addon  # noqa: E402
from animate3d_addon import backend_process, compat, precheck, splat_frames, splats, watch  # noqa: E402
from animate3d_addon.timing import Timing  # noqa: E402
from backend import protocol  # noqa: E402

NAMES = ("x", "y", "z", *precheck.SPLAT_PROPERTIES, *(f"f_rest_{k}" for k in range(9)))


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMATE3D_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(backend_process, "POLITE", 0)
    animate3d_addon.register()
    scenes.reset()
    yield
    animate3d_addon.unregister()


def post(path: Path, up: str = "z", names: tuple[str, ...] = NAMES[:-9], count: int = 3000) -> np.ndarray:
    """Writes a post of Gaussians, two high, and one floater far away; returns the table [N, K]."""
    rng = np.random.default_rng(0)
    places = rng.uniform((-0.3, -0.3, -1.0), (0.3, 0.3, 1.0), (count, 3))
    places[-1] = (40.0, 40.0, 40.0)
    table = rng.normal(0.0, 0.3, (count, len(names))).astype("<f4")
    table[:, :3] = places @ np.array(protocol.UP_AXES[up]).T
    column = {name: index for index, name in enumerate(names)}
    for name, value in (
        ("scale_0", np.log(0.05)),
        ("scale_1", np.log(0.05)),
        ("scale_2", np.log(0.05)),
        ("opacity", 3),
    ):
        if name in column:
            table[:, column[name]] = value
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    head += [f"property float {name}" for name in names]
    path.write_bytes("\n".join([*head, "end_header", ""]).encode() + table.tobytes())
    return table


@pytest.mark.parametrize("up", protocol.UP_AXES)
def test_a_file_comes_in_upright_and_goes_out_as_it_was(tmp_path, up):
    table = post(tmp_path / "post.ply", up, NAMES)
    obj = splats.load(tmp_path / "post.ply", up)
    bpy.context.view_layer.update()
    assert splats.is_splats(obj) and splats.up_of(obj) == up
    world = np.array([obj.matrix_world @ v.co for v in obj.data.vertices])[:-1]
    np.testing.assert_allclose(np.ptp(world, axis=0), (0.6, 0.6, 2.0), atol=0.01)
    splats.write(obj, tmp_path / "again.ply")
    SplatFile = pytest.importorskip("backend.splats.ply", exc_type=ImportError).SplatFile

    before, after = SplatFile.open(tmp_path / "post.ply"), SplatFile.open(tmp_path / "again.ply")
    assert set(after.table.dtype.names) == set(NAMES)
    np.testing.assert_array_equal(after.columns(NAMES), before.columns(NAMES))
    np.testing.assert_array_equal(after.columns(NAMES), table)


def test_balls_are_drawn_in_the_colours_of_the_file(tmp_path):
    post(tmp_path / "post.ply")
    splats.load(tmp_path / "post.ply")
    shown = bpy.context.evaluated_depsgraph_get().object_instances
    (points,) = [each.object.data for each in shown if each.object.type == "POINTCLOUD"]
    assert len(points.points) == 3000 and points.points[0].radius == pytest.approx(0.05, rel=1e-4)
    assert len(points.materials) == 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: post(path, names=("x", "y", "z", "f_dc_0")), "lacks properties"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: None, "There is no file"),
        (lambda path: (post(path), path.write_bytes(path.read_bytes()[:5000])), "damaged"),
        (lambda path: scenes_ply(path), "holds no Gaussian splats"),
    ],
    ids=["no scales", "empty", "missing", "cut short", "a mesh"],
)
def test_what_is_no_file_of_splats_is_refused_in_a_sentence(tmp_path, make, sentence):
    make(tmp_path / "odd.ply")
    before = scenes.snapshot()
    with pytest.raises(RuntimeError, match=sentence):
        bpy.ops.animate3d.import_splats(filepath=str(tmp_path / "odd.ply"))
    assert scenes.snapshot() == before


def scenes_ply(path: Path) -> None:
    scenes.cube()
    bpy.ops.wm.ply_export(filepath=str(path))
    scenes.reset()


def test_splats_are_animated_alone_and_without_bones(tmp_path):
    post(tmp_path / "post.ply")
    bpy.ops.animate3d.import_splats(filepath=str(tmp_path / "post.ply"), up="z")
    with pytest.raises(RuntimeError, match="can't hang on an armature"):
        bpy.ops.animate3d.animate(prompt="a post sways", output="RIG")
    scenes.cube()
    bpy.context.view_layer.update()
    for obj in bpy.context.view_layer.objects:
        obj.select_set(True)
    with pytest.raises(RuntimeError, match="one by one"):
        bpy.ops.animate3d.animate(prompt="a post sways", output="KEYS")


def test_imported_animated_and_saved(tmp_path):
    """The real road: the starter model moves the points by shape keys; frames are complete files of the Gaussians."""
    post(tmp_path / "post.ply", "y-down", NAMES)
    assert bpy.ops.animate3d.import_splats(filepath=str(tmp_path / "post.ply"), up="y-down") == {"FINISHED"}
    obj = bpy.context.object
    assert bpy.ops.animate3d.animate(prompt="a post bounces", frames=6) == {"FINISHED"}
    assert len(obj.data.shape_keys.key_blocks) == 6 and obj.animate3d.takes[0].name == "a post bounces"
    job = watch.queue().jobs[-1]
    play = compat.has_ply_nodes()
    assert bpy.ops.animate3d.save_frames(job=job.name, directory=str(tmp_path / "frames"), play=play) == {"FINISHED"}
    assert ("post frames" in bpy.data.objects) == play
    SplatFile = pytest.importorskip("backend.splats.ply", exc_type=ImportError).SplatFile

    rest = np.array([v.co for v in obj.data.vertices])
    basis = obj.data.shape_keys.key_blocks
    for frame in range(1, 6):
        saved = SplatFile.open(tmp_path / "frames" / f"frame_{frame + 1:04d}.ply")
        assert set(saved.table.dtype.names) == set(NAMES)
        key = np.array([point.co for point in basis[frame].points])
        np.testing.assert_allclose(saved.columns(("x", "y", "z")), key, atol=1e-5)
        np.testing.assert_array_equal(key[-1], rest[-1])  # the floater stays
    assert np.abs(key - rest).max() > 0.01


def test_saved_frames_play_on_the_timeline(tmp_path):
    """Every frame shows its own file with its numbers as attributes, before the motion the first, then the last."""
    folder = tmp_path / "frames {of} a post"
    folder.mkdir()
    tables = []
    for frame in range(1, 5):
        tables.append(post(folder / f"frame_{frame:04d}.ply", count=100 + frame))
    like = splats.load(folder / "frame_0001.ply")
    timing = Timing(4, start=3, step=2)
    if not compat.has_ply_nodes():
        with pytest.raises(protocol.UserError, match="can't play"):
            splat_frames.play(folder, timing, like, "Played")
        return
    obj = splat_frames.play(folder, timing, like, "Played")
    bpy.data.objects.remove(like)
    for time, expected in ((1, 0), (3, 0), (4, 0), (5, 1), (7, 2), (9, 3), (30, 3)):
        bpy.context.scene.frame_set(time)
        shown = bpy.context.evaluated_depsgraph_get().object_instances
        (points,) = [each.object.data for each in shown if each.object.type == "POINTCLOUD"]
        assert len(points.points) == 101 + expected, time
        turned = np.empty(len(points.points), np.float32)
        points.attributes["rot_1"].data.foreach_get("value", turned)
        np.testing.assert_array_equal(turned, tables[expected][:, NAMES.index("rot_1")])
        assert points.points[0].radius == pytest.approx(0.05, rel=1e-4) and splats.COLOR in points.attributes
    assert obj.modifiers[0].node_group.users == 1
