"""Motions as armatures: the skin moves like the shape keys would, in Blender and through every file format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

import blender_scenes as scenes  # noqa: E402
from backend_python import make_rig  # noqa: E402

from animate3d_addon import bake, bake_rig, files, meshes  # noqa: E402
from animate3d_addon.temporary import temporary_scene  # noqa: E402
from backend import protocol  # noqa: E402

FRAMES = 5
PLAIN = bake.BakeSettings(apply_modifiers=True)


def post_and_ball(place: str = "plain") -> list[bpy.types.Object]:
    """A post of many rings with a ball on top, in one of several places."""
    scenes.reset()
    bpy.ops.mesh.primitive_uv_sphere_add(segments=12, ring_count=8, radius=0.8, location=(0, 0, 2.4))
    bpy.context.object.name = "Ball"
    ring, height = np.arange(12) * np.pi / 6, np.linspace(-2, 2, 15)
    vertices = [(0.5 * np.cos(a), 0.5 * np.sin(a), z) for z in height for a in ring]
    faces = [(12 * h + a, 12 * h + (a + 1) % 12, 12 * h + 12 + (a + 1) % 12, 12 * h + 12 + a)
             for h in range(14) for a in range(12)]  # fmt: skip
    ball, post = bpy.data.objects["Ball"], scenes.mesh_object("Post", vertices, faces)
    if place == "squeezed, sheared and mirrored":
        sheared = np.eye(4)
        sheared[0, 1], sheared[2, 2], sheared[:3, 3] = 0.5, 2.0, (3, 1, 2)
        scenes.set_matrix(post, sheared)
        ball.scale, ball.rotation_euler = (1.0, -0.5, 2.0), (0.3, 0.2, 1.0)
    if place == "below a squeezing parent":
        parent = scenes.add(bpy.data.objects.new("Parent", None))
        parent.rotation_euler, parent.scale, parent.location = (0.4, 0.1, 2.0), (1.0, 2.0, 1.0), (5.0, 4.0, 3.0)
        for obj in (ball, post):
            obj.parent, obj.rotation_euler = parent, (0.5, 0.0, 0.2)
    if place == "tiny":
        for obj in (ball, post):
            obj.location, obj.scale = obj.location * 1e-3, (1e-3,) * 3  # glTF has six decimals
    bpy.context.view_layer.update()
    return [ball, post]


def subject_of(objects: list[bpy.types.Object]) -> protocol.Subject:
    with temporary_scene() as scene:
        pieces = meshes.evaluate(objects, scene, 1)
        world, faces = meshes.join(pieces)
    to_world = protocol.subject_to_world(world)
    vertices = protocol.transform_points(np.linalg.inv(to_world), world).astype(np.float32)
    return protocol.Subject(
        vertices=vertices,
        faces=faces,
        weld=meshes.weld(vertices, 1e-6),
        to_world=to_world,
        object_names=tuple(obj.name for obj in objects),
        object_counts=tuple(len(piece.vertices) for piece in pieces),
        condition_c2w=protocol.condition_cameras(),
        appearance_c2w=np.zeros((0, 4, 4)),
        condition_size=64,
        appearance_size=64,
    )


def bend(rest: np.ndarray) -> protocol.Motion:
    """World vertices [V, 3] bent sideways, the more the higher, up to a radian."""
    low, high = rest.min(axis=0), rest.max(axis=0)
    arm = rest - [*(0.5 * (low + high))[:2], low[2]]
    angle = np.linspace(0, 1, FRAMES)[:, None] * arm[:, 2] / (high[2] - low[2])
    x = arm[:, 0] * np.cos(angle) + arm[:, 2] * np.sin(angle)
    z = arm[:, 2] * np.cos(angle) - arm[:, 0] * np.sin(angle)
    return protocol.Motion((np.stack([x, np.broadcast_to(arm[:, 1], x.shape), z], axis=-1) - arm).astype(np.float32))


def look(objects: list[bpy.types.Object]) -> np.ndarray:
    return np.concatenate([scenes.world_vertices(obj) for obj in objects])


def baked(objects: list[bpy.types.Object], settings: bake.BakeSettings = PLAIN):
    """The armature, the rest pose [V, 3] and the motion."""
    subject, rest = subject_of(objects), look(objects)
    motion = bend(rest)
    return bake_rig.bake_rig(objects, subject, make_rig(subject, motion), settings), rest, motion


def errors(objects: list[bpy.types.Object], rest: np.ndarray, motion: protocol.Motion, start: int = 1) -> np.ndarray:
    """Mean distance from the motion at each of its frames, of the mean displacement.

    Files may hold vertices in another order or more often: each is known by its place at rest.
    """
    from scipy.spatial import cKDTree

    bpy.context.scene.frame_set(start)
    which = cKDTree(rest).query(look(objects))[1]
    result = []
    for frame, offsets in enumerate(motion.offsets):
        bpy.context.scene.frame_set(start + 3 * frame)
        result.append(np.linalg.norm(look(objects) - (rest + offsets)[which], axis=1).mean())
    return np.array(result) / np.linalg.norm(motion.offsets, axis=-1)[1:].mean()


PLACES = ("plain", "squeezed, sheared and mirrored", "below a squeezing parent", "tiny")


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_the_skin_moves_like_the_motion(place: str, applied: bool) -> None:
    """Whatever transforms the objects have; both hang on one armature."""
    objects = post_and_ball(place)
    armature, rest, motion = baked(objects, bake.BakeSettings(apply_modifiers=applied))
    found = errors(objects, rest, motion)
    assert found[0] < 1e-5 and found[1:].mean() < 0.01
    assert bake_rig.skinned_by(armature) == objects


READ = {
    ".blend": lambda path: bpy.ops.wm.open_mainfile(filepath=path),
    ".glb": lambda path: bpy.ops.import_scene.gltf(filepath=path),
    ".fbx": lambda path: bpy.ops.import_scene.fbx(filepath=path),
    ".usdc": lambda path: bpy.ops.wm.usd_import(filepath=path),
}


@pytest.mark.parametrize("suffix", READ)
@pytest.mark.parametrize("place", PLACES)
def test_files_hold_a_true_skin(place: str, suffix: str, tmp_path: Path) -> None:
    objects = post_and_ball(place)
    armature, rest, motion = baked(objects)
    path = tmp_path / f"out{suffix}"
    files.save(path, [armature, *objects])
    scenes.reset()
    bpy.context.scene.render.fps = files.FRAME_RATE
    READ[suffix](str(path))
    skinned = [obj for obj in bpy.data.objects if any(m.type == "ARMATURE" for m in obj.modifiers)]
    assert len(skinned) == 2 and len(bpy.data.armatures) == 1
    start = 2 if suffix == ".fbx" else 1  # the FBX reader shifts by a frame
    assert errors(skinned, rest, motion, start).mean() < 0.01


def test_alembic_holds_the_moving_vertices(tmp_path: Path) -> None:
    """That format knows no bones."""
    objects = post_and_ball()
    armature, rest, motion = baked(objects)
    files.save(tmp_path / "out.abc", [armature, *objects])
    scenes.reset()
    bpy.ops.wm.alembic_import(filepath=str(tmp_path / "out.abc"), as_background_job=False)
    moving = [obj for obj in bpy.data.objects if obj.type == "MESH"]
    assert not bpy.data.armatures and errors(moving, rest, motion).mean() < 0.01


def test_what_was_there_stays() -> None:
    """Vertex groups of the bones' names keep their weights; a mesh that others use is copied; parents stay above."""
    objects = post_and_ball()
    parent = scenes.add(bpy.data.objects.new("Parent", None))
    parent.location = (1.0, 2.0, 3.0)
    twin = scenes.add(bpy.data.objects.new("Twin", objects[1].data))
    for obj in objects:
        obj.parent = parent
        obj.vertex_groups.new(name="Post Root").add([0, 1], 0.25, "REPLACE")
    bpy.context.view_layer.update()
    before = look([twin])
    armature, _, _ = baked(objects, bake.BakeSettings())
    assert armature.parent == parent and [obj.parent for obj in objects] == [armature, armature]
    group = objects[1].vertex_groups["Post Root"]
    assert "Post Root" not in armature.data.bones and abs(group.weight(0) - 0.25) < 1e-6
    bpy.context.scene.frame_set(13)
    np.testing.assert_array_equal(look([twin]), before)


def test_an_object_on_an_armature_is_refused_before_anything_changes() -> None:
    scenes.reset()
    obj = scenes.rigged()
    subject = subject_of([obj])
    rig = make_rig(subject, bend(look([obj])))
    before = scenes.snapshot()
    with pytest.raises(protocol.UserError, match="already hangs on an armature"):
        bake_rig.bake_rig([obj], subject, rig)
    assert scenes.snapshot() == before
