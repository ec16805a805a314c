"""How near a skeleton comes to known motions: bones, error and seconds for each animated asset.

    python benchmarks/rig.py --assets DIR --report rig.json

DIR is a folder with `gt/NAME.npz` (vertices [F, V, 3], faces [T, 3]). With `--fitted DIR2`, what `motion_fit.py --save`
wrote, the skeleton is made of the fitted motions instead. `error` is the mean distance between skin and motion, of the
mean displacement.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from backend import device as devices
from backend.motion.rotations import quaternion_to_matrix
from backend.motion.skeleton import make_rig
from backend.protocol import (
    Motion,
    Rig,
    Subject,
    condition_cameras,
    subject_to_world,
    transform_points,
    write_json,
)

COLUMNS = ("vertices", "moves", "bones", "error", "worst", "seconds")


def main() -> int:
    options = _options()
    print(f"{'asset':16}" + "".join(f"{column:>10}" for column in COLUMNS), flush=True)
    rows = []
    for path in sorted((options.assets / "gt").glob("*.npz")):
        row = measure(path, options.fitted and options.fitted / path.name)
        rows.append(row)
        print(f"{row['name']:16}" + "".join(f"{row[column]:10.4f}" for column in COLUMNS), flush=True)
    if options.report:
        write_json(options.report, {"versions": devices.versions(), "rows": rows})
    return 0


def measure(truth: Path, fitted: Path | None) -> dict:
    """One row of the table; `moves` and `worst` are relative to the bounding box diagonal."""
    data = np.load(truth)
    poses = (np.load(fitted) if fitted else data)["vertices"]
    subject = make_subject(poses[0], data["faces"])
    motion = Motion((poses - poses[0]).astype(np.float32))
    started = time.monotonic()
    rig = make_rig(subject, motion)
    seconds = time.monotonic() - started
    off = np.linalg.norm(skinned(rig, poses[0]) - poses, axis=-1)[1:]
    still = np.linalg.norm(motion.offsets, axis=-1)[1:].mean()
    diagonal = np.linalg.norm(np.ptp(poses[0], axis=0))
    return {
        "name": truth.stem,
        "vertices": len(poses[0]),
        "moves": float(still / diagonal),
        "bones": len(rig.names),
        "error": float(off.mean() / still),
        "worst": float(off.max() / diagonal),
        "seconds": round(seconds, 2),
    }


def make_subject(vertices: np.ndarray, faces: np.ndarray) -> Subject:
    to_world = subject_to_world(vertices)
    rest = transform_points(np.linalg.inv(to_world), vertices).astype(np.float32)
    weld = np.unique(np.round(rest * 1e5).astype(np.int64), axis=0, return_inverse=True)[1].reshape(-1)
    return Subject(
        vertices=rest,
        faces=faces,
        weld=weld.astype(np.int32),
        to_world=to_world,
        object_names=("object",),
        object_counts=(len(rest),),
        condition_c2w=condition_cameras(),
        appearance_c2w=np.zeros((0, 4, 4)),
        condition_size=64,
        appearance_size=64,
    )


def skinned(rig: Rig, rest: np.ndarray) -> np.ndarray:
    """World positions [F, V, 3] by linear blend skinning of the rest positions [V, 3]."""
    turns = quaternion_to_matrix(torch.from_numpy(rig.quats)).numpy()
    result = np.zeros((len(turns), len(rest), 3))
    for bone, weight in zip(rig.bones.T, rig.weights.T, strict=True):
        place = (turns[:, bone] @ (rest - rig.heads[bone])[..., None])[..., 0] + rig.heads[bone]
        result += weight[:, None] * (place + rig.translations[:, bone])
    return result


def _options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--assets", type=Path, required=True, metavar="DIR")
    p.add_argument("--fitted", type=Path, metavar="DIR", help="what motion_fit.py --save wrote, instead of the truth")
    p.add_argument("--report", type=Path, metavar="FILE.json")
    return p.parse_args()


if __name__ == "__main__":
    sys.exit(main())
