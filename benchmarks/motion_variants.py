"""Further known motions for `motion_fit.py`, of skeletons that other motions were tuned on.

    python benchmarks/motion_variants.py --assets DIR --out out/variants --seed 1

For each animated asset with an armature: the same mesh, turned about the vertical, with every bone swinging about an
axis of its own. Writes a folder like DIR (`manifest.json`, `NAME.glb`, `gt/NAME.npz`). Needs the bpy package.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix, Quaternion, Vector
from motion_capture import shown_objects

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from animate3d_addon import meshes  # noqa: E402
from animate3d_addon.quiet import quiet  # noqa: E402
from animate3d_addon.temporary import temporary_scene  # noqa: E402
from backend.protocol import write_json, write_npz  # noqa: E402

FRAMES = 16
STEP = 2  # frames of the scene from one to the next
SHARE = (0.04, 0.09)  # of the diagonal, by which a vertex moves on average
LARGEST = 35.0  # degrees by which a bone swings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR", help="with manifest.json")
    parser.add_argument("--names", default="", metavar="A,B", help="only these assets")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    (options.out / "gt").mkdir(parents=True, exist_ok=True)
    entries = []
    names = [name for name in options.names.split(",") if name]
    for entry in json.loads((options.assets / "manifest.json").read_text(encoding="utf-8"))["assets"]:
        if entry["animated"] and entry["armatures"] and (not names or entry["name"] in names):
            name = f"{entry['name']}_{options.seed}"
            share = make_variant(options.assets / entry["file"], options.out, name, options.seed)
            entries.append({"name": name, "file": f"{name}.glb", "animated": True, "moves": share})
            print(f"{name:20} moves {100 * share:.1f} % of the diagonal", flush=True)
    write_json(options.out / "manifest.json", {"assets": entries})
    return 0


def make_variant(path: Path, out: Path, name: str, seed: int) -> float:
    """Writes the animated file and its truth -> the share of the diagonal by which a vertex moves."""
    rng = np.random.default_rng([seed, *name.encode()])
    open_file(path)
    rigs = [obj for obj in bpy.context.view_layer.objects if obj.type == "ARMATURE"]
    rest = _settle(rigs)
    turn = Matrix.Rotation(rng.uniform(0, 2 * math.pi), 4, "Z")
    for obj in [obj for obj in bpy.context.view_layer.objects if obj.parent is None]:
        obj.matrix_world = turn @ obj.matrix_world
    swings = [_swings(rig, rng) for rig in rigs]
    wanted, size = rng.uniform(*SHARE), 1.0
    for _ in range(3):  # nearly linear in the size
        for rig, poses, swing in zip(rigs, rest, swings, strict=True):
            _animate(rig, poses, swing, size)
        size *= wanted / max(share_moved(truth()[0]), 1e-6)
    return save_known(out, name)


def save_known(out: Path, name: str) -> float:
    """Writes what is open as an animated file, and the truth as that file has it -> as of `share_moved`."""
    with quiet():
        bpy.ops.export_scene.gltf(filepath=str(out / f"{name}.glb"), export_animation_mode="ACTIVE_ACTIONS")
    open_file(out / f"{name}.glb")
    vertices, faces, at = truth()
    write_npz(out / "gt" / f"{name}.npz", vertices=vertices, faces=faces, frames=at)
    return share_moved(vertices)


def open_file(path: Path) -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = 24
    with quiet():
        bpy.ops.import_scene.gltf(filepath=str(path))


def _settle(rigs: list[bpy.types.Object]) -> list[dict[str, Quaternion]]:
    """The bones' turns in the clip's first frame; all animation goes."""
    bpy.context.scene.frame_set(0)
    poses = []
    for rig in rigs:
        basis = {bone.name: bone.matrix_basis.copy() for bone in rig.pose.bones}
        rig.animation_data_clear()
        for bone in rig.pose.bones:
            bone.rotation_mode = "QUATERNION"
            bone.matrix_basis = basis[bone.name]
        poses.append({bone.name: bone.rotation_quaternion.copy() for bone in rig.pose.bones})
    for obj in bpy.context.view_layer.objects:
        if obj.type != "ARMATURE":
            obj.animation_data_clear()
    return poses


def _swings(rig: bpy.types.Object, rng: np.random.Generator) -> dict[str, tuple[Vector, float, float]]:
    """Axis, degrees and phase of each bone: fewer degrees near the root, which carries everything."""
    found = {}
    for bone in rig.pose.bones:
        depth = len(bone.bone.parent_recursive)
        degrees = rng.uniform(0, LARGEST) * min(1.0, (1 + depth) / 4)
        found[bone.name] = Vector(rng.standard_normal(3)).normalized(), degrees, rng.uniform(0, 2 * math.pi)
    return found


def _animate(
    rig: bpy.types.Object, rest: dict[str, Quaternion], swings: dict[str, tuple[Vector, float, float]], size: float
) -> None:
    for frame in range(FRAMES):
        for bone in rig.pose.bones:
            axis, degrees, phase = swings[bone.name]
            along = math.sin(2 * math.pi * frame / FRAMES + phase) - math.sin(phase)
            turn = Quaternion(axis, math.radians(min(size * degrees, 2 * LARGEST)) * along)
            bone.rotation_quaternion = rest[bone.name] @ turn
            bone.keyframe_insert("rotation_quaternion", frame=frame * STEP)


def truth() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [F, V, 3] in world space, faces [T, 3] and frames of the scene [F]."""
    objects = shown_objects()
    at, vertices, faces = np.arange(FRAMES, dtype=np.float32) * STEP, [], None
    for frame in at:
        bpy.context.scene.frame_set(int(frame))
        with temporary_scene() as scene:
            world, faces = meshes.join(meshes.evaluate(objects, scene, float(frame)))
            vertices.append(world.astype(np.float32))
    return np.stack(vertices), faces.astype(np.int32), at


def share_moved(vertices: np.ndarray) -> float:
    away = np.linalg.norm(vertices[1:] - vertices[:1], axis=-1).mean()
    return float(away / np.linalg.norm(np.ptp(vertices[0], axis=0)))


if __name__ == "__main__":
    sys.exit(main())
