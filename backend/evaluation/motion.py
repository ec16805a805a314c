"""How right a motion is, against the true positions of all vertices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.motion.graph import edges_of
from backend.protocol import CAMERA_ELEVATION, orbit_c2w, position_code
from backend.training.render import render

NOVEL_AZIMUTH = 45.0  # degrees: between two of the model's views
NOVEL_SIZE = 128  # pixels


@dataclass(frozen=True)
class MotionScore:
    """Distances in percent of the first frame's bounding box diagonal, means over all vertices and moving frames."""

    nothing: float  # error of standing still: how much there is to explain
    error: float
    unexplained: float  # error / nothing
    worst: float  # 95th percentile of the error
    edges: float  # mean |length / rest length - 1| of the welded edges
    true_edges: float  # the same of the truth
    jitter: float  # mean size of the second difference in time, over the truth's own


def score_motion(found: np.ndarray, truth: np.ndarray, faces: np.ndarray, weld: np.ndarray) -> MotionScore:
    """found and truth [F, V, 3] in the same space; faces [T, 3]; weld [V], index of each vertex's distinct position."""
    diagonal = np.linalg.norm(np.ptp(truth[0].astype(np.float64), axis=0))
    away = 100.0 * np.linalg.norm(found[1:].astype(np.float64) - truth[1:], axis=-1) / diagonal
    nothing = 100.0 * np.linalg.norm(truth[1:].astype(np.float64) - truth[:1], axis=-1).mean() / diagonal
    first = np.unique(weld, return_index=True)[1]
    edges = np.stack(edges_of(weld[faces]), axis=1)
    return MotionScore(
        nothing=nothing,
        error=away.mean(),
        unexplained=away.mean() / nothing,
        worst=float(np.percentile(away, 95)),
        edges=edge_distortion(found[:, first], edges),
        true_edges=edge_distortion(truth[:, first], edges),
        jitter=_shake(found) / _shake(truth),
    )


def edge_distortion(points: np.ndarray, edges: np.ndarray) -> float:
    """Mean |length / rest length - 1| over frames 1.. of points [F, U, 3] and edges [E, 2]."""
    if not len(edges):
        return 0.0
    length = np.linalg.norm(points[:, edges[:, 0]].astype(np.float64) - points[:, edges[:, 1]], axis=-1)
    long = length[0] > 1e-6 * np.ptp(points[0], axis=0).max()
    return float(np.abs(length[1:, long] / length[0, long] - 1.0).mean())


def _shake(points: np.ndarray) -> float:
    """Mean size of the second difference in time of points [F, V, 3]."""
    return float(np.linalg.norm(np.diff(points.astype(np.float64), n=2, axis=0), axis=-1).mean())


def novel_view_psnr(found: np.ndarray, truth: np.ndarray, faces: np.ndarray) -> float:
    """dB between both, seen from between two views, in position codes on grey, over frames 1...

    found and truth [F, V, 3] in subject space, faces [T, 3].
    """
    c2w = orbit_c2w(NOVEL_AZIMUTH, CAMERA_ELEVATION)
    code = position_code(truth[0], truth[0].min(axis=0), truth[0].max(axis=0)).astype(np.float32)
    errors = []
    for here, there in zip(found[1:], truth[1:], strict=True):
        a, b = (render(points.astype(np.float64), faces, code, c2w, NOVEL_SIZE) for points in (here, there))
        a, b = (picture[..., :3] + 0.5 * (1 - picture[..., 3:]) for picture in (a, b))
        errors.append(np.mean((a - b) ** 2))
    return float(-10.0 * np.log10(max(np.mean(errors), 1e-10)))
