"""Correspondences from a position-coded video: which rest point each generated pixel shows.

A position-coded pixel names its surface point (`protocol.position_code`), so the fit needs no tracking and no
rendering. Generated colours are slightly off, so frame 0, whose truth is the rest pose, calibrates the colours and
gives the local error of the pixels, which is then taken off all frames (the "bias of the still").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from backend import protocol

BORDER = 1  # pixels at the picture's edge are not used: what leaves the picture is cut there


@dataclass(frozen=True)
class Correspondences:
    """N observations of frames 1..F-1: in this frame and view, this rest sample is seen at this pixel."""

    frame: np.ndarray  # [N] int, 0..F-1
    view: np.ndarray  # [N] int
    sample: np.ndarray  # [N] int, index into the rest samples
    pixel: np.ndarray  # [N, 2] float64: x, y in pixels, y down
    weight: np.ndarray  # [N] float64, 0..1
    size: int  # pixels; images are square


def straight_colours(frames: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Frames [..., C] uint8 to straight colours [..., 3] in 0..1; opaque ones lie on grey 0.5 with alpha [...]."""
    colours = frames[..., :3].astype(np.float32) / 255.0
    if frames.shape[-1] == 4:
        return colours
    cover = np.maximum(alpha, 0.05)[..., None]
    return np.clip((colours - 0.5 * (1 - cover)) / cover, 0.0, 1.0)


def decode_positions(frames: np.ndarray, box: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of `protocol.position_code` for RGBA frames [..., 4] uint8, or floats in 0..1.

    box: the two corners [3] of the rest bounding box. Returns rest positions [..., 3] and confidences [...] in 0..1,
    which fall with transparency and with colours outside the code's range.
    """
    pixels = frames.astype(np.float64) / (255.0 if frames.dtype == np.uint8 else 1.0)
    unit = code_to_unit(pixels[..., :3])
    outside = np.maximum(-unit, unit - 1).max(axis=-1)
    confidence = np.clip(2 * pixels[..., 3] - 1, 0, 1) * np.clip(1.25 - outside / 0.2, 0, 1)
    low, high = (np.asarray(corner, np.float64) for corner in box)
    return low + np.clip(unit, 0, 1) * (high - low), confidence


def code_to_unit(colours: np.ndarray) -> np.ndarray:
    """Colours [..., 3] to places in the unit box [..., 3], unclipped."""
    a, b = protocol.POSITION_CODE_RANGE
    return (np.asarray(colours, np.float64) - a) / (b - a)


def project(points: np.ndarray, c2w: np.ndarray, fovy: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] through camera c2w [4, 4] -> pixels [N, 2] (x, y down) and depths [N]."""
    seen = protocol.transform_points(np.linalg.inv(c2w), points)
    depth = -seen[:, 2]
    focal = 0.5 * size / np.tan(np.radians(fovy) / 2)
    return np.stack([0.5 * size + focal * seen[:, 0] / depth, 0.5 * size - focal * seen[:, 1] / depth], 1), depth


def visible_codes(
    points: np.ndarray, codes: np.ndarray, c2w: np.ndarray, fovy: float, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """What a coded picture of the rest pose looks like: mean code [S, S, 3] and sample count [S, S] per pixel.

    points, codes [N, 3]: a dense sampling; the nearest ones of each pixel are averaged.
    """
    where, depth = project(points, c2w, fovy, size)
    cell = np.floor(where).astype(np.int64)
    inside = ((cell >= 0) & (cell < size)).all(axis=1)
    index, depth, codes = cell[inside, 1] * size + cell[inside, 0], depth[inside], codes[inside]
    front = np.full(size * size, np.inf)
    np.minimum.at(front, index, depth)
    near = depth < front[index] + 0.04
    count = np.bincount(index[near], minlength=size * size).astype(np.float64)
    total = np.stack([np.bincount(index[near], codes[near, k], size * size) for k in range(3)], axis=1)
    return (total / np.maximum(count, 1)[:, None]).reshape(size, size, 3), count.reshape(size, size)


def calibrate(colours: np.ndarray, alpha: np.ndarray, expected: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Gain and bias [2, 3] per channel that take frame 0's colours to the codes they should have.

    colours, expected [4, S, S, 3]; alpha, known [4, S, S]: where both can be compared. Robust; identity where
    there is little to compare.
    """
    use = known & (alpha > 0.9)
    result = np.stack([np.ones(3), np.zeros(3)])
    if use.sum() < 50:
        return result
    for k in range(3):
        x, y = colours[use][:, k].astype(np.float64), expected[use][:, k]
        weight = np.ones_like(x)
        for _ in range(10):
            # A weak pull to the identity: an axis along which little varies can't tell gain from bias.
            mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
            spread = np.average((x - mean_x) ** 2, weights=weight) + 1e-4
            gain = (np.average((x - mean_x) * (y - mean_y), weights=weight) + 1e-4) / spread
            error = gain * (x - mean_x) - (y - mean_y)
            weight = 1 / (1 + (error / 0.03) ** 2)
        result[:, k] = gain, mean_y - gain * mean_x
    return result


def find_correspondences(
    colours: np.ndarray,
    alpha: np.ndarray,
    samples: np.ndarray,
    box: tuple[np.ndarray, np.ndarray],
    cameras: np.ndarray,
    fovy: float,
    threshold: float,
) -> Correspondences:
    """colours [4, F, S, S, 3] straight, alpha [4, F, S, S], samples [M, 3] on the rest surface, cameras [4, 4, 4].

    threshold: distance in the unit code box beyond which a pixel names no surface point.
    """
    size = colours.shape[2]
    unit = code_to_unit(protocol.position_code(samples, *box))
    rest = [visible_codes(samples, unit, camera, fovy, size) for camera in cameras]
    expected, known = np.stack([r[0] for r in rest]), np.stack([r[1] for r in rest]) > 0
    read = code_to_unit(colours)
    gain, bias = calibrate(read[:, 0], alpha[:, 0], expected, known)
    read = read * gain + bias

    usable = alpha > 0.5
    usable[:, :, :BORDER] = usable[:, :, -BORDER:] = False
    usable[:, :, :, :BORDER] = usable[:, :, :, -BORDER:] = False
    view, frame, row, column = np.nonzero(usable)
    code = np.clip(read[usable], 0, 1)
    away, sample = cKDTree(unit).query(code, distance_upper_bound=threshold)
    weight = np.clip(2 * alpha[usable] - 1, 0.1, 1) / (1 + (away / (0.5 * threshold)) ** 2)
    keep = np.isfinite(away)
    found = Correspondences(
        frame[keep], view[keep], sample[keep], np.stack([column, row], axis=1)[keep] + 0.5, weight[keep], size
    )
    return take_off_bias(found, samples, cameras, fovy)


def take_off_bias(found: Correspondences, samples: np.ndarray, cameras: np.ndarray, fovy: float) -> Correspondences:
    """Moves each pixel by what the same place of the surface was off in frame 0 of the same view; drops frame 0."""
    pixel = found.pixel.copy()
    for view, camera in enumerate(cameras):
        still = np.flatnonzero((found.frame == 0) & (found.view == view))
        if len(still) < 8:
            continue
        error = found.pixel[still] - project(samples[found.sample[still]], camera, fovy, found.size)[0]
        trusted = np.linalg.norm(error, axis=1) < 0.06 * found.size  # beyond, the code was misread
        still, error = still[trusted], error[trusted]
        if len(still) < 8:
            continue
        moving = np.flatnonzero((found.frame > 0) & (found.view == view))
        away, index = cKDTree(samples[found.sample[still]]).query(samples[found.sample[moving]], k=8)
        mix = np.exp(-((away / 0.06) ** 2))
        pixel[moving] -= (mix[..., None] * error[index]).sum(axis=1) / (mix.sum(axis=1) + 0.5)[:, None]
    keep = found.frame > 0
    return Correspondences(
        found.frame[keep], found.view[keep], found.sample[keep], pixel[keep], found.weight[keep], found.size
    )
