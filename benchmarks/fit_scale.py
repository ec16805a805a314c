"""How the fit and the rig grow with the object: seconds and peak memory on procedural subjects of every size.

    python benchmarks/fit_scale.py --report scale.json

Each subject bends in a perfect position-coded video; a process of its own fits it and makes its bones. `unexplained` is
the vertices' error over that of standing still, `rig_error` the skeleton's distance from the fitted motion.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from backend import device as devices
from backend.memory import PeakMemory
from backend.motion.fit import fit_motion
from backend.motion.rotations import quaternion_to_matrix
from backend.motion.settings import preset
from backend.motion.skeleton import make_rig
from backend.protocol import (
    Motion,
    Rig,
    Subject,
    Video,
    condition_cameras,
    position_code,
    subject_to_world,
    transform_points,
    write_json,
)
from backend.training.render import render

FRAMES, SIZE = 16, 128
COLUMNS = ("vertices", "objects", "fit_seconds", "rig_seconds", "memory_gb", "unexplained", "bones", "rig_error")
Mesh = tuple[np.ndarray, np.ndarray]  # vertices [V, 3], triangles [T, 3]


def main() -> int:
    options = _options()
    print(f"{'subject':14}" + "".join(f"{column:>13}" for column in COLUMNS), flush=True)
    rows = []
    for name in options.names.split(","):
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # its own process: memory starts from nothing
            row = pool.apply(measure, (name, options.threads))
        rows.append(row)
        print(f"{name:14}" + "".join(f"{row[column]:13.3f}" for column in COLUMNS), flush=True)
    if options.report:
        report = {"threads": options.threads, "versions": devices.versions(), "rows": rows}
        write_json(options.report, report)
    return 0


def measure(name: str, threads: int) -> dict:
    """One row of the table."""
    torch.set_num_threads(threads)
    meshes = SUBJECTS[name]()
    subject = make_subject(meshes)
    del meshes
    poses = [bent(subject.vertices, 0.8 * np.sin(1.5 * np.pi * k / (FRAMES - 1))) for k in range(FRAMES)]
    video = make_video(subject, poses)
    peak = PeakMemory(with_parent=False)
    started = time.monotonic()
    matte = video.frames[..., 3].astype(np.float32) / 255.0
    offsets = fit_motion(subject, None, video, matte, preset("standard"), torch.device("cpu"), lambda *_: None)
    fitted = time.monotonic()
    linear = subject.to_world[:3, :3].astype(np.float32)
    motion = Motion(np.stack([moved @ linear.T for moved in offsets]))
    unexplained = _unexplained(subject, offsets, poses)
    del offsets, poses
    begun = time.monotonic()
    rig = make_rig(subject, motion)
    return {
        "name": name,
        "vertices": len(subject.vertices),
        "objects": len(subject.object_counts),
        "fit_seconds": round(fitted - started, 2),
        "rig_seconds": round(time.monotonic() - begun, 2),
        "memory_gb": peak.take(),
        "unexplained": unexplained,
        "bones": len(rig.names),
        "rig_error": _rig_error(subject, motion, rig),
    }


def bent(vertices: np.ndarray, angle: float) -> np.ndarray:
    """Subject space [V, 3], turned about the y axis by up to `angle`, the more the higher."""
    turn = angle * (vertices[:, 2] - vertices[:, 2].min()) / np.ptp(vertices[:, 2])
    x, z = vertices[:, 0], vertices[:, 2] - vertices[:, 2].min()
    moved = [x * np.cos(turn) + z * np.sin(turn), vertices[:, 1], z * np.cos(turn) - x * np.sin(turn)]
    return np.stack(moved, axis=1).astype(np.float32) + np.float32([0, 0, vertices[:, 2].min()])


def make_subject(meshes: list[Mesh]) -> Subject:
    counts = [len(vertices) for vertices, _ in meshes]
    world = np.concatenate([vertices for vertices, _ in meshes])
    starts = np.cumsum([0, *counts[:-1]])
    faces = np.concatenate([mesh[1] + start for mesh, start in zip(meshes, starts, strict=True)])
    to_world = subject_to_world(world)
    vertices = transform_points(np.linalg.inv(to_world), world).astype(np.float32)
    return Subject(
        vertices=vertices,
        faces=faces.astype(np.int32),
        weld=np.arange(len(vertices), dtype=np.int32),
        to_world=to_world,
        object_names=tuple(f"Object {k}" for k in range(len(meshes))),
        object_counts=tuple(counts),
        condition_c2w=condition_cameras(),
        appearance_c2w=np.zeros((0, 4, 4)),
        condition_size=SIZE,
        appearance_size=SIZE,
    )


def make_video(subject: Subject, poses: list[np.ndarray]) -> Video:
    colors = position_code(subject.vertices, *subject.box).astype(np.float32)
    frames = np.zeros((4, len(poses), SIZE, SIZE, 4), np.uint8)
    for frame, pose in enumerate(poses):
        for view, camera in enumerate(subject.condition_c2w):
            picture = render(pose, subject.faces, colors, camera, SIZE)
            picture[..., :3] /= np.maximum(picture[..., 3:], 1e-6)
            frames[view, frame] = np.round(255 * picture.clip(0, 1))
    return Video(frames, "position")


def _unexplained(subject: Subject, offsets: np.ndarray, poses: list[np.ndarray]) -> float:
    off, still = 0.0, 0.0
    for moved, pose in zip(offsets[1:], poses[1:], strict=True):
        off += float(np.linalg.norm(subject.vertices + moved - pose, axis=1).mean())
        still += float(np.linalg.norm(pose - subject.vertices, axis=1).mean())
    return round(off / still, 4)


def _rig_error(subject: Subject, motion: Motion, rig: Rig) -> float:
    """On at most 50 000 of the vertices: the mean distance from the motion, of the mean displacement."""
    chosen = np.random.default_rng(0).permutation(len(subject.vertices))[:50_000]
    rest = transform_points(subject.to_world, subject.vertices[chosen])
    turns = quaternion_to_matrix(torch.from_numpy(rig.quats)).numpy()
    off, still = 0.0, 0.0
    for frame, offsets in enumerate(motion.offsets[1:, chosen], 1):
        moved = np.zeros_like(rest)
        for bone, weight in zip(rig.bones[chosen].T, rig.weights[chosen].T, strict=True):
            arm = rest - rig.heads[bone]
            place = np.einsum("nij,nj->ni", turns[frame, bone], arm) + rig.heads[bone] + rig.translations[frame, bone]
            moved += weight[:, None] * place
        off += float(np.linalg.norm(moved - rest - offsets, axis=1).mean())
        still += float(np.linalg.norm(offsets, axis=1).mean())
    return round(off / still, 4)


def sheet(columns: int, rows: int, closed: bool = False) -> np.ndarray:
    """Triangles [T, 3] of a grid of vertices; `closed` glues the last column to the first."""
    across, along = (columns if closed else columns - 1), rows - 1
    a = (np.arange(along)[:, None] * columns + np.arange(across)).ravel()
    b = (np.arange(along)[:, None] * columns + (np.arange(across) + 1) % columns).ravel()
    return np.concatenate([np.stack([a, b, b + columns], 1), np.stack([a, b + columns, a + columns], 1)])


def column(around: int, rings: int) -> Mesh:
    angle, height = np.meshgrid(np.linspace(0, 2 * np.pi, around, endpoint=False), np.linspace(-1, 1, rings))
    radius = 0.3 + 0.05 * np.sin(9 * height)
    vertices = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1).reshape(-1, 3)
    return vertices, sheet(around, rings, closed=True)


def blocks(count: int) -> list[Mesh]:
    """A tower of separate balls."""
    ball, faces = column(12, 8)
    ball = np.concatenate([ball[:, :2] / 0.3 * np.sqrt(1.01 - ball[:, 2:] ** 2), ball[:, 2:]], axis=1)
    rng = np.random.default_rng(0)
    places = np.stack([*(0.3 * rng.uniform(-1, 1, (2, count))), np.linspace(-1, 1, count)], axis=1)
    return [(0.08 * ball + place, faces) for place in places]


def shards(count: int) -> list[Mesh]:
    """One object of many small sheets that touch nowhere."""
    rng = np.random.default_rng(0)
    faces, meshes = sheet(4, 4), []
    flat = np.stack([*np.meshgrid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 4)), np.zeros((4, 4))], -1).reshape(-1, 3)
    for k in range(count):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        angle = rng.uniform(0, 2 * np.pi)
        place = [0.3 * np.cos(angle), 0.3 * np.sin(angle), 2 * k / count - 1]
        meshes.append((0.06 * flat @ turn.T + place, faces))
    starts = 16 * np.arange(count)
    return [(np.concatenate([m[0] for m in meshes]), np.concatenate([faces + start for start in starts]))]


def box() -> Mesh:
    """24 vertices: a long box whose corners are split, as files have them."""
    corners = np.array([(x, y, z) for x in (-0.3, 0.3) for y in (-0.3, 0.3) for z in (-1, 1)])
    quads = np.array([(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)])
    starts = 4 * np.arange(6)[:, None]
    return corners[quads].reshape(-1, 3), np.concatenate([starts + np.array(half) for half in ((0, 1, 2), (0, 2, 3))])


SUBJECTS = {
    "24 vertices": lambda: [box()],
    "500 islands": lambda: shards(500),
    "300 objects": lambda: blocks(300),
    "100k vertices": lambda: [column(250, 400)],
    "1M vertices": lambda: [column(1000, 1000)],
}


def _options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--names", default=",".join(SUBJECTS), help="which subjects, with commas between them")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--report", type=Path, metavar="FILE.json")
    return p.parse_args()


if __name__ == "__main__":
    sys.exit(main())
