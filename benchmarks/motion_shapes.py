"""Known motions of models that have no skeleton, or none that is used, written as shape keys.

    python benchmarks/motion_shapes.py --assets DIR --out out/shapes --seed 1
    python benchmarks/motion_shapes.py --assets DIR --out out/pieces --seed 1 --pieces

Each asset, animated or not, turned about the vertical, performs one of the starter model's formulas
(`backend.training.motions`: bending, squashing, jumping). With `--pieces`, one of its pieces opens like a lid, spins
like a wheel or slides like a drawer. Makes a folder like DIR for `motion_fit.py`. Needs the bpy package.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix, Vector
from motion_capture import shown_objects
from motion_variants import FRAMES, STEP, open_file, share_moved, truth

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from animate3d_addon import meshes  # noqa: E402
from animate3d_addon.quiet import quiet  # noqa: E402
from backend.motion.graph import build_graph  # noqa: E402
from backend.protocol import subject_to_world, transform_points, write_json, write_npz  # noqa: E402
from backend.training.motions import MOTIONS, animate  # noqa: E402

STRENGTH = (0.5, 1.0)
FEWEST = 24  # vertices
PIECE_MOTIONS = ("opens", "spins", "slides")
PIECE = (0.15, 0.7)  # of the object's diagonal: how large the piece is that moves
CHOICE = 6  # of the largest of these
LEAST = 0.004  # of the diagonal, by which a vertex has to move on average


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR", help="with manifest.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pieces", action="store_true", help="one piece of each asset moves, and nothing else")
    options = parser.parse_args()
    (options.out / "gt").mkdir(parents=True, exist_ok=True)
    rng, entries = np.random.default_rng(options.seed), []
    assets = json.loads((options.assets / "manifest.json").read_text(encoding="utf-8"))["assets"]
    motions = np.resize(rng.permutation(list(PIECE_MOTIONS if options.pieces else MOTIONS)), len(assets))
    for entry, motion in zip(assets, motions, strict=True):
        if entry["vertices"] >= FEWEST:
            name = f"{entry['name'].split('_')[0 if entry['animated'] else -1]}_{motion}_{options.seed}"
            share = make_shapes(options.assets / entry["file"], options.out, name, str(motion), rng)
            if share == 0.0:  # it is all one piece
                continue
            entries.append({"name": name, "file": f"{name}.glb", "animated": True, "moves": share})
            print(f"{name:20} moves {100 * share:.1f} % of the diagonal", flush=True)
    write_json(options.out / "manifest.json", {"assets": entries})
    return 0


def make_shapes(path: Path, out: Path, name: str, motion: str, rng: np.random.Generator) -> float:
    """Writes the animated file and its truth -> the share of the diagonal by which a vertex moves; 0: it can't."""
    open_file(path)
    bpy.context.scene.frame_set(0)
    objects = meshes.freeze(shown_objects(), 0.0)
    turn = Matrix.Rotation(rng.uniform(0, 2 * math.pi), 4, "Z")
    places = []
    for obj in objects:
        world = obj.matrix_world.copy()
        obj.parent = None
        obj.animation_data_clear()
        obj.matrix_world = turn @ world
        places.append(transform_points(np.array(obj.matrix_world), meshes.coordinates(obj.data)))
    for obj in set(bpy.data.objects) - set(objects):
        bpy.data.objects.remove(obj)
    if motion in MOTIONS:
        moved = _moved(np.concatenate(places), motion, float(rng.uniform(*STRENGTH)))
    else:
        moved = _with_piece_moved(np.concatenate(places), _pieces(objects, places), motion, rng)
        if moved is None:
            return 0.0
    for obj, part in zip(objects, np.split(moved, np.cumsum([len(p) for p in places])[:-1], axis=1), strict=True):
        _key(obj, transform_points(np.linalg.inv(np.array(obj.matrix_world)), part))
    with quiet():
        bpy.ops.export_scene.gltf(filepath=str(out / f"{name}.glb"), export_animation_mode="ACTIVE_ACTIONS")
    open_file(out / f"{name}.glb")
    vertices, faces, at = truth()
    write_npz(out / "gt" / f"{name}.npz", vertices=vertices, faces=faces, frames=at)
    return share_moved(vertices)


def _moved(world: np.ndarray, motion: str, strength: float) -> np.ndarray:
    """World points [V, 3] -> [F, V, 3]."""
    to_world = subject_to_world(world)
    points = transform_points(np.linalg.inv(to_world), world)
    return transform_points(to_world, animate(motion, points, FRAMES, strength))


def _pieces(objects: list[bpy.types.Object], places: list[np.ndarray]) -> np.ndarray:
    """The connected piece [V] of each vertex of all objects; vertices in the same place are one."""
    faces, first = [], 0
    for obj, points in zip(objects, places, strict=True):
        obj.data.calc_loop_triangles()
        corners = np.zeros(3 * len(obj.data.loop_triangles), np.int32)
        obj.data.loop_triangles.foreach_get("vertices", corners)
        faces.append(corners.reshape(-1, 3) + first)
        first += len(points)
    world = np.concatenate(places)
    weld = meshes.weld(world, 1e-5 * float(np.ptp(world, axis=0).max()))
    graph = build_graph(world, np.concatenate(faces), weld)
    return graph.component[graph.owner]


def _with_piece_moved(world: np.ndarray, piece: np.ndarray, motion: str, rng: np.random.Generator) -> np.ndarray | None:
    """World points [V, 3] -> [F, V, 3]: one of the larger pieces opens, spins or slides; None where there is none."""
    size = np.linalg.norm(np.ptp(world, axis=0))
    extent = np.array([np.linalg.norm(np.ptp(world[piece == k], axis=0)) for k in range(piece.max() + 1)])
    fit = np.flatnonzero((extent > PIECE[0] * size) & (extent < PIECE[1] * size))
    for k in rng.permutation(fit[np.argsort(extent[fit])[-CHOICE:]]):
        moved = np.repeat(world[None], FRAMES, axis=0)
        moved[:, piece == k] = _piece_moved(world[piece == k], motion)
        if share_moved(moved) > LEAST:
            return moved
    return None


def _piece_moved(points: np.ndarray, motion: str) -> np.ndarray:
    """Points [V, 3] -> [F, V, 3]: there and back, but for a wheel."""
    middle = points.mean(axis=0)
    axes = np.linalg.svd(points - middle, full_matrices=False)[2]  # longest to shortest
    along = (points - middle) @ axes.T
    moved = []
    for phase in np.arange(FRAMES) / FRAMES:
        swing = 0.5 - 0.5 * math.cos(2 * math.pi * phase)
        if motion == "slides":
            moved.append(points + 0.5 * swing * np.ptp(along[:, 0]) * axes[0])
            continue
        # A lid turns about a long edge, a wheel about its shortest axis.
        opens = motion == "opens"
        angle, axis = (math.radians(80) * swing, axes[0]) if opens else (2 * math.pi * phase, axes[2])
        centre = middle + (along[:, 1].min() * axes[1] if opens else 0.0)
        moved.append((points - centre) @ np.array(Matrix.Rotation(angle, 3, Vector(axis))).T + centre)
    return np.stack(moved)


def _key(obj: bpy.types.Object, local: np.ndarray) -> None:
    """A shape key for each frame of local [F, V, 3], alone at its own frame."""
    obj.shape_key_add(name="rest", from_mix=False)
    for frame in range(1, FRAMES):
        key = obj.shape_key_add(name=f"{frame}", from_mix=False)
        key.data.foreach_set("co", np.ascontiguousarray(local[frame], np.float32).ravel())
        for at in (frame - 1, frame, frame + 1):
            key.value = float(at == frame)
            key.keyframe_insert("value", frame=at * STEP)


if __name__ == "__main__":
    sys.exit(main())
