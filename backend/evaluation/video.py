"""How good a generated position-coded video is: against a true one, against the fit of it, and in itself."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from backend.motion.correspondence import code_to_unit, find_correspondences, project
from backend.motion.graph import sample_surface
from backend.motion.rig_fit import RigFitSettings
from backend.protocol import Subject, position_code

SAMPLES = 6000  # of the surface
MOST_PIXELS = 20_000
GREY = 0.5


def masked_psnr(video: np.ndarray, truth: np.ndarray) -> float:
    """dB over frames 1.. and the pixels that either shows the object in; [n, F, H, W, 4] uint8, straight alpha."""
    inside = (video[:, 1:, ..., 3] > 0) | (truth[:, 1:, ..., 3] > 0)
    error = over_grey(video[:, 1:])[inside] - over_grey(truth[:, 1:])[inside]
    return float(-10.0 * np.log10(max(np.square(error).mean(), 1e-10)))


def over_grey(pictures: np.ndarray) -> np.ndarray:
    """uint8 [..., 4] with straight alpha to float32 [..., 3] in 0..1 on grey."""
    alpha = pictures[..., 3:].astype(np.float32) / 255
    return pictures[..., :3].astype(np.float32) / 255 * alpha + GREY * (1 - alpha)


def view_residual(video: np.ndarray, offsets: np.ndarray, subject: Subject) -> float:
    """Where the pixels say that their surface points are, and where the one fitted motion of all views puts them.

    Mean distance over frames 1.., in percent of the picture's width. video [4, F, S, S, 4] uint8 with straight alpha,
    offsets [F, V, 3] in subject space.
    """
    face, weights = sample_surface(subject.vertices, subject.faces, SAMPLES)
    corners = subject.faces[face]
    rest = (weights[..., None] * subject.vertices[corners]).sum(axis=1)
    found = find_correspondences(
        video[..., :3].astype(np.float32) / 255, video[..., 3].astype(np.float32) / 255, rest, subject.box,
        subject.condition_c2w, subject.fovy, RigFitSettings().code_threshold,
    )  # fmt: skip
    away, count = 0.0, 0.0
    for frame in range(1, len(offsets)):
        moved = rest + (weights[..., None] * offsets[frame][corners]).sum(axis=1)
        for view, camera in enumerate(subject.condition_c2w):
            here = (found.frame == frame) & (found.view == view)
            pixel, _ = project(moved[found.sample[here]], camera, subject.fovy, found.size)
            away += (found.weight[here] * np.linalg.norm(pixel - found.pixel[here], axis=1)).sum()
            count += found.weight[here].sum()
    return float(100.0 * away / max(count, 1e-9) / found.size)


def colour_drift(video: np.ndarray, subject: Subject) -> float:
    """How far the colours leave those that the object has: mean distance to the nearest place of its surface.

    In percent of the box's side, of frames 1.. less that of frame 0. video [4, F, S, S, 4] uint8, straight alpha.
    """
    face, weights = sample_surface(subject.vertices, subject.faces, SAMPLES)
    rest = (weights[..., None] * subject.vertices[subject.faces[face]]).sum(axis=1)
    tree = cKDTree(code_to_unit(position_code(rest, *subject.box)))
    first, later = (_to_surface(tree, part) for part in (video[:, :1], video[:, 1:]))
    return 100.0 * (later - first)


def _to_surface(tree: cKDTree, pictures: np.ndarray) -> float:
    """Mean distance of opaque pixels' codes from the object's."""
    colours = pictures[pictures[..., 3] > 200][:, :3]
    if len(colours) == 0:
        return 1.0  # the object is gone
    chosen = np.random.default_rng(0).permutation(len(colours))[:MOST_PIXELS]
    return float(tree.query(code_to_unit(colours[chosen] / 255.0))[0].mean())
