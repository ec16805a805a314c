"""Known motions of models that have no skeleton, or none that is used: bending, squashing, twisting, parts that open.

    python benchmarks/motion_shapes.py --assets DIR --out out/shapes --seed 1

Each asset, animated or not, turned about the vertical, performs one of the starter model's formulas
(`backend.training.motions`), written as shape keys. Makes a folder like DIR for `motion_fit.py`. Needs the bpy package.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix
from motion_capture import shown_objects
from motion_variants import FRAMES, STEP, open_file, save_known

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from animate3d_addon import meshes  # noqa: E402
from backend.protocol import subject_to_world, transform_points, write_json  # noqa: E402
from backend.training.motions import MOTIONS, animate  # noqa: E402

STRENGTH = (0.5, 1.0)
FEWEST = 24  # vertices


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR", help="with manifest.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    (options.out / "gt").mkdir(parents=True, exist_ok=True)
    rng, entries = np.random.default_rng(options.seed), []
    assets = json.loads((options.assets / "manifest.json").read_text(encoding="utf-8"))["assets"]
    motions = np.resize(rng.permutation(list(MOTIONS)), len(assets))
    for entry, motion in zip(assets, motions, strict=True):
        if entry["vertices"] >= FEWEST:
            name = f"{entry['name'].split('_')[0 if entry['animated'] else -1]}_{motion}_{options.seed}"
            share = make_shapes(options.assets / entry["file"], options.out, name, str(motion), rng)
            entries.append({"name": name, "file": f"{name}.glb", "animated": True, "moves": share})
            print(f"{name:20} moves {100 * share:.1f} % of the diagonal", flush=True)
    write_json(options.out / "manifest.json", {"assets": entries})
    return 0


def make_shapes(path: Path, out: Path, name: str, motion: str, rng: np.random.Generator) -> float:
    """Writes the animated file and its truth -> the share of the diagonal by which a vertex moves."""
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
    moved = _moved(np.concatenate(places), motion, float(rng.uniform(*STRENGTH)))
    for obj, part in zip(objects, np.split(moved, np.cumsum([len(p) for p in places])[:-1], axis=1), strict=True):
        _key(obj, transform_points(np.linalg.inv(np.array(obj.matrix_world)), part))
    return save_known(out, name)


def _moved(world: np.ndarray, motion: str, strength: float) -> np.ndarray:
    """World points [V, 3] -> [F, V, 3]."""
    to_world = subject_to_world(world)
    points = transform_points(np.linalg.inv(to_world), world)
    return transform_points(to_world, animate(motion, points, FRAMES, strength))


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
