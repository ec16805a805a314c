"""Files in and out: what was baked comes back from every format, and damaged files are refused in a sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402

from animate3d_addon import bake, files  # noqa: E402
from backend import protocol  # noqa: E402


@pytest.fixture(autouse=True)
def empty_file():
    scenes.reset()


def baked(tmp_path: Path, names=("Cube",), frames: int = 16):
    """Objects with a random motion of `frames` frames: the objects, and their vertices [F, V, 3] in world space."""
    objects = [scenes.colored(scenes.cube(name, center=(3 * i, 0, 0)), (1, 0, 0)) for i, name in enumerate(names)]
    for obj in objects:
        obj.location, obj.scale = (1, 2, 3), (1, 2, 0.5)
    bpy.context.view_layer.update()
    bpy.context.scene.frame_start = bpy.context.scene.frame_end = 1
    subject = scenes.subject_of(objects, tmp_path / "job")
    motion = scenes.random_motion(subject, frames)
    bake.bake_shape_keys(objects, subject, motion)
    return objects, protocol.transform_points(subject.to_world, subject.vertices) + motion.offsets


def looks(frame: float) -> np.ndarray:
    """Vertices of all meshes of the scene at a frame; sorted, since exporters split and reorder them."""
    bpy.context.scene.frame_set(int(np.floor(frame)), subframe=frame - np.floor(frame))
    objects = sorted((o for o in bpy.context.scene.objects if o.type == "MESH"), key=lambda o: o.name)
    return np.concatenate([scenes.world_vertices(obj) for obj in objects])


def same_points(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    distance = np.linalg.norm(found[:, None] - expected[None], axis=-1)
    return distance.min(axis=0).max() < tolerance and distance.min(axis=1).max() < tolerance


@pytest.mark.parametrize("suffix", files.WRITABLE)
@pytest.mark.parametrize("names", [("Cube",), ("a", "b", "c")])
def test_the_motion_comes_back(tmp_path, suffix, names):
    objects, truth = baked(tmp_path, names)
    path = tmp_path / f"out put Füchse 🦊{suffix}"
    files.save(path, objects)
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == [path.name]
    scenes.read_back(path)
    size = np.linalg.norm(np.ptp(truth[0], axis=0))
    # glTF time 0 is the timeline's frame 0; the importer of Blender's FBX adds its own frame.
    shift = {".fbx": 1}.get(suffix, 0)
    for index in range(16):
        frame = 1 + 3 * index + shift
        assert same_points(looks(frame), truth[index], 1e-4 * size), (index, frame)


def test_glb_has_one_weights_channel_per_mesh_and_a_target_per_key(tmp_path):
    objects, _ = baked(tmp_path, ("a", "b"))
    files.save(tmp_path / "out.glb", objects)
    description = scenes.read_glb(tmp_path / "out.glb")
    assert [len(p["targets"]) for mesh in description["meshes"] for p in mesh["primitives"]] == [15, 15]
    (animation,) = description["animations"]
    assert [channel["target"]["path"] for channel in animation["channels"]] == ["weights", "weights"]


def test_only_the_objects_are_exported_and_the_scene_stays(tmp_path):
    objects, _ = baked(tmp_path)
    other = scenes.cube("Other")
    other.select_set(True)
    objects[0].hide_viewport = True
    objects[0].hide_set(True)
    before = scenes.snapshot()
    files.save(tmp_path / "out.glb", objects)
    assert [node["name"] for node in scenes.read_glb(tmp_path / "out.glb")["nodes"]] == ["Cube"]
    after = scenes.snapshot()
    assert {name for name in before if after[name] != before[name]} <= {"users"}
    assert objects[0].hide_viewport and objects[0].hide_get()


def test_load_of_an_animated_rig_keeps_the_first_pose(tmp_path):
    obj = scenes.rigged()
    rig = obj.parent
    rig.location, rig.scale = (1, 2, 3), (2, 2, 2)
    pose = rig.pose.bones["bone"]
    pose.keyframe_insert("rotation_euler", frame=0)
    pose.rotation_euler = (0, 0, 2)
    pose.keyframe_insert("rotation_euler", frame=20)
    bpy.context.scene.frame_set(0)
    first = scenes.world_vertices(obj)
    bpy.context.scene.frame_set(20)
    last = scenes.world_vertices(obj)
    bpy.ops.export_scene.gltf(filepath=str(tmp_path / "rig.glb"))
    for frame, expected in ((0, first), (20, last)):
        (loaded,) = files.load(tmp_path / "rig.glb", frame=frame)
        assert same_points(scenes.world_vertices(loaded), expected, 1e-4)
        assert [each.type for each in bpy.data.objects] == ["MESH"] and not loaded.modifiers
        assert not bpy.data.actions and not bpy.data.armatures
        assert (bpy.context.scene.frame_start, bpy.context.scene.frame_end) == (1, 1)


def test_load_of_a_sheared_animated_hierarchy(tmp_path):
    """A rotated child of an unevenly scaled, turning parent has no place that location, rotation and scale can say."""
    parent = scenes.add(bpy.data.objects.new("Parent", None))
    parent.scale = (1, 4, 1)
    parent.keyframe_insert("rotation_euler", frame=0)
    parent.rotation_euler.z = 1.0
    parent.keyframe_insert("rotation_euler", frame=10)
    child = scenes.cube()
    child.parent, child.rotation_euler = parent, (0.3, 0.5, 0.7)
    bpy.context.scene.frame_set(0)
    expected = scenes.world_vertices(child)
    bpy.ops.export_scene.gltf(filepath=str(tmp_path / "child.glb"))
    (loaded,) = files.load(tmp_path / "child.glb")
    assert loaded.parent is None and same_points(scenes.world_vertices(loaded), expected, 1e-4)


@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".obj", ".fbx", ".ply", ".stl", ".blend"])
def test_load_of_every_kind(tmp_path, suffix):
    scenes.colored(scenes.cube(), (1, 0, 0)).location = (5, 0, 0)
    path = tmp_path / f"Füchse und 狐{suffix}"
    writers = {
        ".glb": lambda: bpy.ops.export_scene.gltf(filepath=str(path)),
        ".gltf": lambda: bpy.ops.export_scene.gltf(filepath=str(path), export_format="GLTF_SEPARATE"),
        ".obj": lambda: bpy.ops.wm.obj_export(filepath=str(path)),
        ".fbx": lambda: bpy.ops.export_scene.fbx(filepath=str(path)),
        ".ply": lambda: bpy.ops.wm.ply_export(filepath=str(path)),
        ".stl": lambda: bpy.ops.wm.stl_export(filepath=str(path)),
        ".blend": lambda: bpy.ops.wm.save_as_mainfile(filepath=str(path), copy=True),
    }
    writers[suffix]()
    (obj,) = files.load(path)
    expected = scenes.CUBE + np.array((5, 0, 0)) if suffix not in (".ply", ".stl", ".obj") else None
    found = scenes.world_vertices(obj)
    if expected is None:  # formats without axes: a cube is a cube along any
        assert np.ptp(found, axis=0) == pytest.approx([2, 2, 2], abs=1e-5)
    else:
        assert same_points(found, expected, 1e-5)


def test_blend_objects_by_name(tmp_path):
    rigged = scenes.rigged()
    scenes.cube("Other")
    names = (rigged.name, rigged.parent.name)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"), copy=True)
    assert [obj.name for obj in files.load(tmp_path / "scene.blend")] == ["Other", "Rigged"]
    for name in names:
        (obj,) = files.load(tmp_path / "scene.blend", name)
        assert obj.name == "Rigged" and obj.modifiers and len(bpy.data.objects) == 3
    with pytest.raises(protocol.UserError, match="no object named “Nobody”") as caught:
        files.load(tmp_path / "scene.blend", "Nobody")
    assert "“Other”, “Rigged”" in caught.value.hint


def refused(path: Path, words: str, capfd=None) -> None:
    with pytest.raises(protocol.UserError, match=words) as caught:
        files.load(path)
    assert "\n" not in caught.value.message and "Traceback" not in caught.value.message
    if capfd is not None:
        assert capfd.readouterr() == ("", "")


def damaged_glb(path: Path, change) -> Path:
    description, binary = scenes.triangle_gltf()
    change(description)
    return scenes.write_glb(path, description, binary)


def set_in(*keys_and_value):
    def change(description: dict) -> None:
        *keys, last, value = keys_and_value
        for key in keys:
            description = description[key]
        description[last] = value

    return change


def test_the_whole_triangle_is_read(tmp_path, capfd):
    (obj,) = files.load(damaged_glb(tmp_path / "a.glb", lambda description: None))
    assert len(obj.data.polygons) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "change",
    [
        set_in("accessors", 1, "count", 9),
        set_in("accessors", 1, "bufferView", 7),
        set_in("accessors", 1, "bufferView", -1),
        set_in("accessors", 0, "componentType", 1),
        set_in("accessors", 0, "count", "three"),
        set_in("accessors", 0, "count", 2),
        set_in("accessors", 0, "byteOffset", -4),
        set_in("bufferViews", 0, "byteLength", 10**12),
        set_in("bufferViews", 1, "buffer", 3),
        set_in("buffers", 0, "byteLength", 10**9),
        set_in("buffers", 0, "uri", "not-there.bin"),
        set_in("meshes", 0, "primitives", 0, "indices", 5),
        set_in("meshes", 0, "primitives", 0, "attributes", {"POSITION": 9}),
        set_in("meshes", 0, "primitives", None),
        set_in("meshes", []),
        set_in("nodes", 0, "children", [0]),
        set_in("nodes", 0, "mesh", 4),
        set_in("scenes", 0, "nodes", [3]),
        set_in("nodes", [{"mesh": 0, "children": [1]}, {"children": [2]}, {"children": [1]}]),
        set_in("asset", "version", "1.0"),
        set_in("asset", []),
        set_in("extensionsRequired", ["VENDOR_unheard_of"]),
    ],
)
def test_glb_with_parts_that_do_not_fit(tmp_path, capfd, change):
    refused(damaged_glb(tmp_path / "bad.glb", change), "bad.glb", capfd)


def test_glb_with_an_index_out_of_range(tmp_path, capfd):
    refused(scenes.write_glb(tmp_path / "a.glb", *scenes.triangle_gltf((0, 1, 7))), "vertex that doesn't exist", capfd)


def test_glb_truncated_anywhere(tmp_path):
    whole = scenes.write_glb(tmp_path / "whole.glb", *scenes.triangle_gltf()).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.glb").write_bytes(whole[:length])
        refused(tmp_path / "cut.glb", "cut.glb")


def test_glb_with_broken_json(tmp_path, capfd):
    refused(scenes.write_glb(tmp_path / "a.glb", b'{"asset": {"version"'), "no valid JSON", capfd)
    refused(scenes.write_glb(tmp_path / "a.glb", b"[" * 100000), "no valid JSON")
    refused(scenes.write_glb(tmp_path / "a.glb", b"\xff\xfe\x00"), "no valid JSON")


def test_gltf_without_its_bin(tmp_path, capfd):
    description, _ = scenes.triangle_gltf()
    description["buffers"][0]["uri"] = "some%20where.bin"
    (tmp_path / "a.gltf").write_text(json.dumps(description))
    refused(tmp_path / "a.gltf", "needs the file “some where.bin”", capfd)


def test_a_missing_image_is_no_obstacle(tmp_path, capfd):
    description, binary = scenes.triangle_gltf()
    description["images"] = [{"uri": "gone.png"}]
    description["textures"] = [{"source": 0}]
    description["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
    description["meshes"][0]["primitives"][0]["material"] = 0
    (obj,) = files.load(scenes.write_glb(tmp_path / "a.glb", description, binary))
    assert len(scenes.subject_of([obj], tmp_path / "job").faces) == 1
    assert capfd.readouterr() == ("", "")


def test_skin_weights_that_are_not_numbers(tmp_path):
    """The vertices they belong to stay where they are; the file is read."""
    scenes.rigged()
    bpy.ops.export_scene.gltf(filepath=str(tmp_path / "rig.glb"))
    description = scenes.read_glb(tmp_path / "rig.glb")
    data = bytearray((tmp_path / "rig.glb").read_bytes())
    weights = description["accessors"][description["meshes"][0]["primitives"][0]["attributes"]["WEIGHTS_0"]]
    view = description["bufferViews"][weights["bufferView"]]
    binary = 20 + struct.unpack_from("<I", data, 12)[0] + 8
    data[binary + view["byteOffset"] : binary + view["byteOffset"] + 64] = np.full(16, np.nan, "<f4").tobytes()
    (tmp_path / "rig.glb").write_bytes(data)
    (obj,) = files.load(tmp_path / "rig.glb")
    assert np.isfinite(scenes.world_vertices(obj)).all()
    scenes.subject_of([obj], tmp_path / "job")


XYZ = "property float x\nproperty float y\nproperty float z\n"
PLY = "ply\nformat {format} 1.0\nelement vertex 3\n" + XYZ + "{more}end_header\n"
SPLAT = "".join(f"property float {name}\n" for name in ("f_dc_0", "opacity", "scale_0", "rot_0"))
FACE = "element face 1\nproperty list uchar int vertex_indices\n"
POINTS = "0 0 0\n1 0 0\n0 1 0\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PLY.format(format="ascii", more=SPLAT), "splats"),
        (PLY.format(format="ascii", more="") + POINTS, "no faces"),
        ("ply\nformat ascii 1.0\n", "no valid header"),
        ("nonsense", "no valid header"),
        (PLY.format(format="ascii", more=FACE).replace("element vertex", "elexent vertex") + POINTS, "means nothing"),
        (PLY.format(format="ascii", more=FACE).replace("vertex 3", "vertex 0") + "3 0 1 2\n", "no vertices"),
        (PLY.format(format="ascii", more=FACE).replace("_indices", "_xndices") + POINTS, "faces have no vertices"),
        (PLY.format(format="ascii", more=FACE) + "0 0 0\n", "damaged"),
        (PLY.format(format="binary_little_endian", more=FACE) + "xx", "damaged"),
    ],
)
def test_ply_that_is_no_mesh(tmp_path, capfd, text, words):
    (tmp_path / "a.ply").write_text(text)
    refused(tmp_path / "a.ply", words, capfd)


def test_ply_with_an_index_out_of_range(tmp_path):
    """Blender leaves out the face; where none is left, capture says so."""
    (tmp_path / "a.ply").write_text(PLY.format(format="ascii", more=FACE) + POINTS + "3 0 1 9\n")
    with pytest.raises(protocol.UserError, match="no face"):
        scenes.subject_of(files.load(tmp_path / "a.ply"), tmp_path / "job")


@pytest.mark.parametrize("suffix", [".obj", ".fbx", ".stl", ".blend", ".ply", ".glb", ".gltf"])
@pytest.mark.parametrize("content", [b"", b"nonsense", bytes(range(256)) * 40, b"\0" * 5000])
def test_nonsense_of_every_kind(tmp_path, capfd, suffix, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    refused(tmp_path / f"a{suffix}", f"a{suffix}", capfd)


def test_kinds_and_places_that_do_not_exist(tmp_path, capfd):
    (tmp_path / "a.xyz").write_text("1 2 3")
    (tmp_path / "folder.glb").mkdir()
    refused(tmp_path / "a.xyz", r"can't be read \(.xyz\)", capfd)
    refused(tmp_path / "none.glb", "There is no file", capfd)
    refused(tmp_path / "folder.glb", "There is no file", capfd)


def test_places_that_cant_be_written(tmp_path, capfd):
    obj = scenes.cube()
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.glb").mkdir()
    for path in (tmp_path / "file" / "out.glb", tmp_path / "folder.glb", Path("/proc/out.glb"), tmp_path / "out.xyz"):
        with pytest.raises(protocol.UserError, match="can't be written"):
            files.save(path, [obj])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", files.WRITABLE)
def test_a_full_disk(tmp_path, suffix, monkeypatch):
    """No file may grow beyond 20 kB here. What was there before stays, and nothing half-written is left behind."""
    resource = pytest.importorskip("resource")
    obj = scenes.grid("Sheet", 100)
    noise = np.random.default_rng(0).uniform(-1, 1, 30000).astype(np.float32)
    obj.data.vertices.foreach_set("co", noise)
    (tmp_path / f"out{suffix}").write_text("what was there")
    if suffix == ".abc":  # its writer ends the process, so the free space is looked at before
        monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=20000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(protocol.UserError, match="can't be written"):
            files.save(tmp_path / f"out{suffix}", [obj])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.name for each in tmp_path.iterdir()] == [f"out{suffix}"]
    assert (tmp_path / f"out{suffix}").read_text() == "what was there"


@pytest.mark.parametrize("suffix", [".glb", ".fbx", ".usdc", ".abc"])
def test_a_child_of_an_unevenly_scaled_parent_is_where_it_was(tmp_path, suffix):
    parent = scenes.add(bpy.data.objects.new("Parent", None))
    parent.scale, parent.rotation_euler = (1, 4, 1), (0.2, 0, 0.5)
    child = scenes.cube()
    child.parent, child.rotation_euler, child.location = parent, (0.3, 0.5, 0.7), (1, 2, 3)
    bpy.context.view_layer.update()
    expected = scenes.world_vertices(child)
    files.save(tmp_path / f"out{suffix}", [child])
    scenes.read_back(tmp_path / f"out{suffix}")
    assert same_points(looks(1), expected, 1e-4)


def test_blend_objects_that_are_hidden_from_renders(tmp_path):
    scenes.cube("Seen")
    scenes.cube("Helper").hide_render = True
    widgets = bpy.data.collections.new("Widgets")
    bpy.context.scene.collection.children.link(widgets)
    widget = scenes.cube("Widget")
    bpy.context.scene.collection.objects.unlink(widget)
    widgets.objects.link(widget)
    bpy.context.view_layer.layer_collection.children[0].exclude = True
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"), copy=True)
    assert [obj.name for obj in files.load(tmp_path / "scene.blend")] == ["Seen"]
    for name in ("Helper", "Widget"):
        assert [obj.name for obj in files.load(tmp_path / "scene.blend", name)] == [name]


def test_blend_truncated(tmp_path):
    scenes.grid("Sheet", 100)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "whole.blend"), copy=True, compress=False)
    whole = (tmp_path / "whole.blend").read_bytes()
    for share in (0.2, 0.5, 0.9):
        (tmp_path / "cut.blend").write_bytes(whole[: int(share * len(whole))])
        refused(tmp_path / "cut.blend", "cut.blend")


def test_fbx_with_a_count_that_would_be_read_for_ever(tmp_path, capfd):
    scenes.cube()
    bpy.ops.export_scene.fbx(filepath=str(tmp_path / "a.fbx"))
    capfd.readouterr()
    data = bytearray((tmp_path / "a.fbx").read_bytes())
    data[31:35] = b"\xff\xff\xff\x7f"  # properties of the first record
    (tmp_path / "a.fbx").write_bytes(data)
    refused(tmp_path / "a.fbx", "don't fit together", capfd)
