"""Capture: cameras, position codes, the joined mesh, and a scene that is as it was."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402

from animate3d_addon import capture, files, materials, meshes  # noqa: E402
from backend import protocol  # noqa: E402

ASSETS = Path(__file__).parents[2] / "shared" / "assets" / "dev"


@pytest.fixture(autouse=True)
def empty_file():
    scenes.reset()


def image(job: Path, kind: str, index: int) -> np.ndarray:
    """[H, W, 4] float in 0..1 as stored, top row first."""
    loaded = bpy.data.images.load(str(protocol.Subject.image_path(job, kind, index)))
    loaded.colorspace_settings.name = "Non-Color"
    loaded.alpha_mode = "CHANNEL_PACKED"  # as stored, not multiplied
    width, height = loaded.size
    pixels = np.array(loaded.pixels[:], np.float32).reshape(height, width, 4)[::-1]
    bpy.data.images.remove(loaded)
    return pixels


def test_what_is_on_disk_is_what_is_returned(tmp_path):
    scenes.cube()
    subject = scenes.subject_of(bpy.data.objects[:], tmp_path)
    again = protocol.Subject.load(tmp_path)
    for field in dataclasses.fields(subject):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(subject, field.name))
    assert [protocol.Subject.image_path(tmp_path, "position", i).exists() for i in range(4)] == [True] * 4
    assert subject.appearance_c2w.shape == (0, 4, 4)


def test_views_look_at_front_right_back_left(tmp_path):
    """Subject azimuth 0 is the world's -y; 90 the world's +x."""
    marks = {"front": ((0, -3, 0), (1, 0, 0)), "right": ((3, 0, 0), (0, 1, 0)), "back": ((0, 3, 0), (0, 0, 1))}
    for name, (center, color) in marks.items():
        scenes.colored(scenes.cube(name, 0.5, center), color)
    scenes.colored(scenes.cube("left", 0.5, (-3, 0, 0)), (1, 1, 0))
    scenes.cube("up", 0.2, (0, 0, 1.5))
    settings = dataclasses.replace(scenes.FAST, appearance="both", condition_size=64, appearance_views=((0, 15),))
    subject = capture.capture(bpy.data.objects[:], tmp_path, settings)
    for index, color in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]):
        view = image(tmp_path, "condition", index)
        mark = (view[..., 3] > 0.9) & (np.abs(view[..., :3] - color).max(axis=-1) < 0.05)
        rows, columns = np.nonzero(mark)
        assert abs(columns.mean() - 31.5) < 1.0, index
        assert rows.mean() > 32, "the near cube is in the lower half when seen from above"
    # In view 0 the world's +x is to the right, and up is up.
    view = image(tmp_path, "condition", 0)
    green = np.nonzero((view[..., 3] > 0.9) & (view[..., 1] > 0.9) & (view[..., 0] < 0.1))
    assert green[1].mean() > 40
    assert image(tmp_path, "appearance", 0).shape == (32, 32, 4)
    assert subject.appearance_c2w.shape == (1, 4, 4)


def turned(size: float, shift: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = size * np.array([[0.0, -2.0, 0.3], [1.0, 0.0, 0.0], [0.0, 0.4, 3.0]])
    matrix[:3, 3] = shift
    return matrix


@pytest.mark.parametrize(
    "matrix",
    [
        turned(1.0, 0.0),
        turned(1.0, 1e6),
        turned(1e6, 0.0),
        turned(1e-6, 0.0),
        turned(1.0, 7.0) @ np.diag([1.0, -1.0, 1.0, 1.0]),
        turned(1.0, 0.0) @ np.diag([1.0, 1.0, 0.0, 1.0]),
    ],
    ids=["sheared", "far away", "huge", "tiny", "mirrored", "flat"],
)
def test_position_codes_name_the_rest_position(tmp_path, matrix):
    """Project every pixel's decoded position with the protocol's camera: it must land on that pixel."""
    scenes.set_matrix(scenes.grid("Sheet", 20), matrix)
    assert_decodes(tmp_path)


@pytest.mark.parametrize(("size", "shift"), [(1e3, 1e6), (1e6, 0.0), (1e-6, 0.0)])
def test_position_codes_where_the_mesh_itself_is_far_huge_or_tiny(tmp_path, size, shift):
    obj = scenes.grid("Sheet", 20)
    vertices = meshes.coordinates(obj.data) * size + shift
    obj.data.vertices.foreach_set("co", vertices.astype(np.float32).ravel())
    obj.data.update()
    assert_decodes(tmp_path)


def assert_decodes(job: Path) -> None:
    settings = dataclasses.replace(scenes.FAST, condition_size=128, position_samples=8)
    subject = capture.capture(bpy.data.objects[:], job, settings)
    low, high = (corner.astype(np.float64) for corner in subject.box)
    a, b = protocol.POSITION_CODE_RANGE
    for index, c2w in enumerate(subject.condition_c2w):
        view = image(job, "position", index)
        rows, columns = np.nonzero(view[..., 3] > 0.999)
        assert len(rows) > 200
        points = low + (view[rows, columns, :3] - a) / (b - a) * (high - low)
        camera = protocol.transform_points(np.linalg.inv(c2w), points)
        focal = 64.0 / np.tan(np.radians(subject.fovy / 2))
        u = 64.0 + focal * camera[:, 0] / -camera[:, 2] - 0.5
        v = 64.0 - focal * camera[:, 1] / -camera[:, 2] - 0.5
        error = np.hypot(u - columns, v - rows)
        # One step of 255 is 1/204 of the box, here about half a pixel.
        assert np.median(error) < 0.5 and np.percentile(error, 95) < 1.2, (index, np.median(error))


def test_position_codes_are_exact_on_a_face_that_has_one(tmp_path):
    """A sheet seen at any angle has the code of its own plane in one channel, to a step of 255."""
    scenes.mesh_object("Sheet", [(-1, 0, -1), (1, 0, -1), (1, 0, 1), (-1, 0, 1)], [(0, 1, 2, 3)])
    scenes.subject_of(bpy.data.objects[:], tmp_path)
    view = image(tmp_path, "position", 0)
    inside = view[..., 3] > 0.999
    assert np.abs(view[inside][:, 0] - 0.5).max() <= 1.01 / 255  # flat along subject x: the middle of the range
    assert (view[~inside & (view[..., 3] == 0)] == 0).all()


def test_capture_leaves_no_trace(tmp_path):
    obj = scenes.colored(scenes.rigged(), (1, 0, 0))
    obj.select_set(True)
    scenes.add(bpy.data.objects.new("Text", bpy.data.curves.new("Text", "FONT"))).data.body = "hello"
    bpy.context.scene.frame_set(7, subframe=0.25)
    before = scenes.snapshot()
    capture.capture(bpy.data.objects[:], tmp_path, dataclasses.replace(scenes.FAST, appearance="both"))
    assert scenes.snapshot() == before


@pytest.mark.parametrize("step", ["use_cycles", "add_camera", "use_position_colors"])
def test_capture_leaves_no_trace_when_it_fails_half_way(tmp_path, monkeypatch, step):
    scenes.cube()
    before = scenes.snapshot()
    original = getattr(materials, step)

    def fail(*arguments):
        original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(materials, step, fail)
    with pytest.raises(KeyboardInterrupt):
        scenes.subject_of(bpy.data.objects[:], tmp_path)
    assert scenes.snapshot() == before
    assert not (tmp_path / "subject" / "subject.json").exists()


def test_nothing_is_printed(tmp_path, capfd):
    scenes.cube()
    capture.capture(bpy.data.objects[:], tmp_path, dataclasses.replace(scenes.FAST, appearance="both"))
    assert capfd.readouterr() == ("", "")


def test_progress_goes_up(tmp_path):
    scenes.cube()
    seen = []
    capture.capture(bpy.data.objects[:], tmp_path, scenes.FAST, lambda fraction, words: seen.append(fraction))
    assert seen == sorted(seen) and len(seen) == 4 and seen[0] >= 0.0 and seen[-1] < 1.0


def test_objects_are_joined_in_order_of_name(tmp_path):
    b, a = scenes.cube("b", 1.0, (5, 0, 0)), scenes.mesh_object("a", [(0, 0, 0), (1, 0, 0), (0, 1, 0)], [(0, 1, 2)])
    subject = scenes.subject_of([b, a], tmp_path)
    assert subject.object_names == ("a", "b") and subject.object_counts == (3, 8)
    world = protocol.transform_points(subject.to_world, subject.vertices)
    np.testing.assert_allclose(world[:3], [(0, 0, 0), (1, 0, 0), (0, 1, 0)], atol=1e-6)
    assert subject.faces.max() == 10 and len(subject.faces) == 13


def test_weld_by_position():
    rng = np.random.default_rng(0)
    distinct = rng.uniform(-1, 1, (500, 3))
    vertices = np.repeat(distinct, 4, axis=0) + rng.uniform(-4e-7, 4e-7, (2000, 3))
    welded = meshes.weld(vertices, 1e-6)
    np.testing.assert_array_equal(welded.reshape(500, 4), welded[::4][:, None].repeat(4, axis=1))
    assert len(np.unique(welded)) == 500 and welded.max() == 499


def test_weld_of_a_long_chain_ends_soon():
    vertices = np.zeros((20000, 3))
    vertices[:, 0] = np.arange(20000) * 0.5e-6
    vertices[-1] = 1.0
    start = time.process_time()
    assert len(np.unique(meshes.weld(vertices, 1e-6))) == 2
    assert time.process_time() - start < 10.0


def test_fox_has_290_positions(tmp_path):
    path = ASSETS / "fox_run.glb"
    if not path.exists():
        pytest.skip("the development assets are not beside the repository")
    subject = scenes.subject_of(files.load(path), tmp_path)
    assert len(subject.vertices) == 1728 and subject.weld.max() + 1 == 290
    truth = np.load(ASSETS / "gt" / "fox_run.npz")
    world = protocol.transform_points(subject.to_world, subject.vertices)
    np.testing.assert_allclose(world, truth["vertices"][0], atol=1e-4)
    np.testing.assert_array_equal(subject.faces, truth["faces"])


@pytest.mark.parametrize("kind", ["FONT", "CURVE", "META", "SURFACE"])
def test_curves_texts_and_metaballs_have_a_surface(tmp_path, kind):
    if kind == "FONT":
        scenes.add(bpy.data.objects.new("Word", bpy.data.curves.new("Word", "FONT"))).data.body = "Wag"
    elif kind == "CURVE":
        bpy.ops.curve.primitive_bezier_circle_add()
        bpy.context.object.data.bevel_depth = 0.1
    elif kind == "META":
        bpy.ops.object.metaball_add(type="BALL")
    else:
        bpy.ops.surface.primitive_nurbs_surface_sphere_add()
    before = scenes.snapshot()
    subject = scenes.subject_of(bpy.data.objects[:], tmp_path)
    assert len(subject.faces) > 10
    assert scenes.snapshot() == before
    assert image(tmp_path, "position", 0)[..., 3].max() > 0.9


def test_hidden_objects_are_captured_as_they_would_look(tmp_path):
    obj = scenes.cube()
    obj.modifiers.new("More", "SUBSURF").levels = 1
    obj.hide_viewport = obj.hide_render = True
    obj.hide_set(True)
    subject = scenes.subject_of([obj], tmp_path)
    assert len(subject.vertices) == 26
    assert image(tmp_path, "position", 0)[..., 3].max() > 0.9
    assert obj.hide_viewport and obj.hide_render


def test_an_object_in_edit_mode(tmp_path):
    import bmesh

    obj = scenes.cube()
    bpy.context.view_layer.objects.active = obj
    bpy.ops.object.mode_set(mode="EDIT")
    edited = bmesh.from_edit_mesh(obj.data)
    edited.verts.ensure_lookup_table()
    edited.verts[0].co.x = -9.0
    subject = scenes.subject_of([obj], tmp_path)
    assert protocol.transform_points(subject.to_world, subject.vertices)[:, 0].min() == pytest.approx(-9.0)
    assert obj.mode == "EDIT"


def test_materials_of_object_slots_and_procedural_ones(tmp_path):
    """A slot may hold its material with the object, and a texture may go by local coordinates."""
    obj = scenes.cube()
    scenes.colored(obj, (1, 0, 0))
    green = scenes.colored(scenes.cube("Other"), (0, 1, 0)).data.materials[0]
    obj.material_slots[0].link = "OBJECT"
    obj.material_slots[0].material = green
    settings = dataclasses.replace(scenes.FAST, appearance="color", appearance_views=())
    capture.capture([obj], tmp_path, settings)
    np.testing.assert_allclose(image(tmp_path, "condition", 0)[16, 16], (0, 1, 0, 1), atol=0.02)


def test_a_job_folder_that_cant_be_written(tmp_path):
    scenes.cube()
    (tmp_path / "file").write_text("")
    before = scenes.snapshot()
    with pytest.raises(protocol.UserError, match="can't be written"):
        scenes.subject_of(bpy.data.objects[:], tmp_path / "file")
    assert scenes.snapshot() == before


def test_a_job_folder_with_an_odd_name(tmp_path):
    job = tmp_path / "my {job} #1 Füchse 🦊"
    scenes.cube()
    scenes.subject_of(bpy.data.objects[:], job)
    assert protocol.Subject.image_path(job, "position", 3).exists()
