"""Poses improved pixel by pixel: what the surface drawn in a pose and the frame differ by is brought down directly.

Direct image alignment: moving the surface by d changes the picture by minus its gradient times d, of which the bones'
normal equations follow (Gauss-Newton, as in Lucas-Kanade). That reaches only as far as a gradient does, but says at
once what patches and outlines say one after the other. For poses that are nearly right, of videos that are crisp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange

from backend.motion.bones import Rig, bone_affine
from backend.motion.evidence import CLIP, Pose
from backend.motion.posing import posed
from backend.motion.rig_fit import NormalEquations
from backend.motion.surface_views import EPSILON, FAR, Painter

MAX_HUNG = 12  # bones that move a pixel: four at each corner of its triangle
FAINT = 1e-7  # squared gradient below which a pixel says nothing


@dataclass(frozen=True)
class Round:
    """Some steps at one resolution."""

    size: int  # pixels
    samples: int  # per pixel and axis
    soft: bool  # whether pictures are softened: one sample per pixel leaves outlines jagged
    steps: int
    length: float = 1.0  # of all steps but the last: robust errors make each too short


@dataclass(frozen=True)
class PixelSettings:
    """Weights as in `RigFitSettings`; found on ten known motions and on four that nothing else was tuned on."""

    weight: float = 0.02  # of a pixel of a 64 pixel picture; .06 follows noise, .006 leaves a fox .05 behind
    stiffness: float = 4.0  # of the links; 16 with half the yielding is no better, with as much it stiffens foxes
    yields: float = 0.0025  # subject units: a joint that bends holds less, so that bodies bend at joints
    temporal: float = 0.3
    prior: float = 1e-4


class PixelFit:
    """Improves poses of a rig."""

    def __init__(
        self,
        painter: Painter,
        rig: Rig,
        points: np.ndarray,
        skin: tuple[np.ndarray, np.ndarray],
        settings: PixelSettings,
    ) -> None:
        """points [P, 3] at rest, as painted, hung on bones by skin: (weights [P, K], bones [P, K])."""
        self.painter, self.rig, self.points, self.skin, self.settings = painter, rig, points, skin, settings

    def improve(
        self,
        turns: torch.Tensor,
        shifts: torch.Tensor,
        wanted: Callable[[int], np.ndarray],
        rounds: tuple[Round, ...],
        step_done: Callable[[], None] = lambda: None,
    ) -> Pose:
        """Poses [1 + T, ...], the rest first; `wanted` gives pictures [T, K, S, S, 4] of a size, on grey with alpha."""
        for part in rounds:
            goal = wanted(part.size)
            if part.soft:
                goal = softened(goal)
            for left in reversed(range(part.steps)):
                turns, shifts = self._step(turns, shifts, goal, part, part.length if left else 1.0)
                step_done()
        return turns, shifts

    def _step(self, turns: torch.Tensor, shifts: torch.Tensor, goal: np.ndarray, part: Round, length: float) -> Pose:
        options = self.settings
        system = NormalEquations(self.rig, turns, shifts)
        self._add_pixels(system, turns[1:], shifts[1:], goal, part)
        system.add_links(options.stiffness, options.stiffness, yields=options.yields)
        system.add_time(options.temporal)
        system.add_prior(options.prior)
        return system.moved(length)

    def _add_pixels(
        self, system: NormalEquations, turns: torch.Tensor, shifts: torch.Tensor, goal: np.ndarray, part: Round
    ) -> None:
        affine = bone_affine(self.rig.centres, turns, shifts).numpy().astype(np.float64)
        places = posed(self.points, self.skin, affine)
        image, depth, face_of, place = self.painter.draw_frames(places, part.size, part.samples)
        if part.soft:
            image = softened(image)
        origin = (self.rig.centres + shifts).numpy().astype(np.float64)  # [T, B, 3]
        add_pixels(
            image, goal, depth, face_of, place, self.painter.faces, self.points, places, *self.skin, affine, origin,
            self.painter.w2c, self.painter.focal(part.size), self.settings.weight * (64 / part.size) ** 2,
            system.matrix.numpy(), system.right.numpy(),
        )  # fmt: skip


@njit(cache=True, parallel=True, fastmath=True)
def softened(pictures):
    """Pictures [T, K, S, S, C] softened by about a pixel: binomial, edges repeated."""
    frames, views, size, _, channels = pictures.shape
    result = np.empty_like(pictures)
    tap = np.array([1, 4, 6, 4, 1], np.float32) / np.float32(16)
    for job in prange(frames * views):
        image, out = pictures[job // views, job % views], result[job // views, job % views]
        across = np.empty_like(image)
        for y in range(size):
            for x in range(size):
                for c in range(channels):
                    total = np.float32(0)
                    for k in range(5):
                        total += tap[k] * image[y, min(max(x + k - 2, 0), size - 1), c]
                    across[y, x, c] = total
        for y in range(size):
            for x in range(size):
                for c in range(channels):
                    total = np.float32(0)
                    for k in range(5):
                        total += tap[k] * across[min(max(y + k - 2, 0), size - 1), x, c]
                    out[y, x, c] = total
    return result


@njit(cache=True)
def _owner(depth, y, x, samples):
    """The sample (row, column) of depth [S', S'] whose surface a pixel's gradient moves with; (-1, -1) for none.

    The pixel's own nearest one, unless what lies beside it is clearly in front: the gradient is that one's outline.
    """
    fine = depth.shape[0]
    own, row, column = FAR, -1, -1
    near, near_row, near_column = FAR, -1, -1
    for fy in range(max((y - 1) * samples, 0), min((y + 2) * samples, fine)):
        for fx in range(max((x - 1) * samples, 0), min((x + 2) * samples, fine)):
            away = depth[fy, fx]
            if away < near:
                near, near_row, near_column = away, fy, fx
            if away < own and fy // samples == y and fx // samples == x:
                own, row, column = away, fy, fx
    return (near_row, near_column) if near < own - EPSILON else (row, column)


@njit(cache=True, fastmath=True)
def _structure(drawn, wanted, y, x, out):
    """Of a pixel, into out [6]: squared gradients (xx, xy, yy), gradient times difference (x, y), squared difference.

    The gradient is the mean of both pictures': right to second order.
    """
    size = drawn.shape[0]
    left, right, up, down = max(x - 1, 0), min(x + 1, size - 1), max(y - 1, 0), min(y + 1, size - 1)
    out[:] = 0.0
    for c in range(drawn.shape[2]):
        gx = 0.25 * (drawn[y, right, c] - drawn[y, left, c] + wanted[y, right, c] - wanted[y, left, c])
        gy = 0.25 * (drawn[down, x, c] - drawn[up, x, c] + wanted[down, x, c] - wanted[up, x, c])
        away = wanted[y, x, c] - drawn[y, x, c]
        out[0] += gx * gx
        out[1] += gx * gy
        out[2] += gy * gy
        out[3] -= gx * away
        out[4] -= gy * away
        out[5] += away * away


@njit(cache=True, fastmath=True)
def _hang(corners, share, rest, weights, hung_on, affine, origin, bones, levers):
    """What moves a point of a triangle: fills bones [H] and levers [H, 4] (weighted arm, weight) -> their count.

    corners [3] and their shares [3]; rest [P, 3]; affine [B, 3, 4]; origin [B, 3]: where the bones turn about.
    """
    count = 0
    for corner in range(3):
        point = corners[corner]
        for k in range(weights.shape[1]):
            w = share[corner] * weights[point, k]
            if w < 1e-4:
                continue
            bone, at = hung_on[point, k], 0
            while at < count and bones[at] != bone:
                at += 1
            if at == count:
                bones[at] = bone
                levers[at] = 0.0
                count += 1
            for i in range(3):
                there = affine[bone, i, 3] - origin[bone, i]
                for j in range(3):
                    there += affine[bone, i, j] * rest[point, j]
                levers[at, i] += w * there
            levers[at, 3] += w
    return count


@njit(cache=True, fastmath=True)
def _rows(place, w2c, focal, levers, count, rows):
    """d(pixel) / d(turn, shift) of each bone into rows [2, H, 6]; place [3] of the point, x right, y down."""
    x, y, z = w2c[0, 3], w2c[1, 3], -w2c[2, 3]
    for i in range(3):
        x += w2c[0, i] * place[i]
        y += w2c[1, i] * place[i]
        z -= w2c[2, i] * place[i]
    move = np.empty((2, 3))
    for i in range(3):
        move[0, i] = focal * (w2c[0, i] + x / z * w2c[2, i]) / z
        move[1, i] = -focal * (w2c[1, i] + y / z * w2c[2, i]) / z
    for r in range(2):
        for a in range(count):
            for i in range(3):
                j, k = (i + 1) % 3, (i + 2) % 3
                rows[r, a, i] = levers[a, j] * move[r, k] - levers[a, k] * move[r, j]
                rows[r, a, 3 + i] = levers[a, 3] * move[r, i]


@njit(cache=True, fastmath=True)
def _add(rows, bones, count, told, weight, matrix, right):
    """One pixel's terms: rows [2, H, 6], told [6] as of `_structure`; only the lower triangle by block."""
    for a in range(count):
        i = 6 * bones[a]
        for p in range(6):
            across, down = rows[0, a, p], rows[1, a, p]
            right[i + p] += weight * (across * told[3] + down * told[4])
            first = weight * (across * told[0] + down * told[1])
            second = weight * (across * told[1] + down * told[2])
            for b in range(count):
                j = 6 * bones[b]
                if j <= i:
                    for q in range(6):
                        matrix[i + p, j + q] += first * rows[0, b, q] + second * rows[1, b, q]


@njit(cache=True, fastmath=True)
def _add_views(
    first, last, drawn, wanted, depth, face_of, place, faces, rest, places, weights, hung_on, affine, origin, w2c,
    focal, weight, matrix, right,
):  # fmt: skip
    """`add_pixels` of some views, first .. last - 1, of one frame."""
    size = drawn.shape[1]
    samples = depth.shape[1] // size
    told, share, point = np.zeros(6), np.zeros(3), np.zeros(3)
    bones, levers, rows = np.zeros(MAX_HUNG, np.int64), np.zeros((MAX_HUNG, 4)), np.zeros((2, MAX_HUNG, 6))
    for v in range(first, last):
        for y in range(size):
            for x in range(size):
                if drawn[v, y, x, 3] == 0.0 and wanted[v, y, x, 3] == 0.0:
                    continue
                _structure(drawn[v], wanted[v], y, x, told)
                if told[0] + told[2] < FAINT:
                    continue
                row, column = _owner(depth[v], y, x, samples)
                if row < 0:
                    continue
                corners = faces[face_of[v, row, column]]
                share[1], share[2] = place[v, row, column]
                share[0] = 1.0 - share[1] - share[2]
                for i in range(3):
                    point[i] = 0.0
                    for corner in range(3):
                        point[i] += share[corner] * places[corners[corner], i]
                count = _hang(corners, share, rest, weights, hung_on, affine, origin, bones, levers)
                _rows(point, w2c[v], focal, levers, count, rows)
                robust = weight / (1.0 + told[5] / (CLIP * CLIP)) ** 2
                _add(rows, bones, count, told, robust, matrix, right)


@njit(cache=True, parallel=True, fastmath=True)
def add_pixels(
    drawn, wanted, depth, face_of, place, faces, rest, places, weights, hung_on, affine, origin, w2c, focal, weight,
    matrix, right,
):  # fmt: skip
    """Adds all pixels of T frames and K views to the systems of the frames.

    drawn, wanted [T, K, S, S, 4]; depth, face_of, place [T, K, S', S', ...] as of `draw_views`; faces [N, 3];
    rest [P, 3], places [T, P, 3] of the points, hung by weights [P, 4] on bones hung_on [P, 4]; affine [T, B, 3, 4];
    origin [T, B, 3]; w2c [K, 4, 4]; focal in pixels; matrix [T, 6 B, 6 B] and right [T, 6 B] float64.
    """
    frames, views = drawn.shape[:2]
    # The views of a single frame are added up side by side; those of many would cost much memory.
    sums = views if frames == 1 else 0
    unknowns = right.shape[1]
    own, own_right = np.zeros((sums, unknowns, unknowns)), np.zeros((sums, unknowns))
    for job in prange(frames * max(sums, 1)):
        if sums > 0:
            _add_views(
                job, job + 1, drawn[0], wanted[0], depth[0], face_of[0], place[0], faces, rest, places[0], weights,
                hung_on, affine[0], origin[0], w2c, focal, weight, own[job], own_right[job],
            )  # fmt: skip
        else:
            _add_views(
                0, views, drawn[job], wanted[job], depth[job], face_of[job], place[job], faces, rest, places[job],
                weights, hung_on, affine[job], origin[job], w2c, focal, weight, matrix[job], right[job],
            )  # fmt: skip
    for k in range(sums):
        matrix[0] += own[k]
        right[0] += own_right[k]
