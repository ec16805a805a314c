"""Poses of a rig's bones from correspondences: robust reprojection error, Gauss-Newton, all frames at once.

Correspondences are absolute, so nothing has to be tracked from frame to frame.
Coarse to fine is done by stiffness: with strong links the bones move like one body, then like limbs, then freely.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numba import get_num_threads
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from backend.motion.accumulate import add_links, add_observations, add_terms, frame_ranges
from backend.motion.bones import Joints, Rig
from backend.motion.observations import Observations, pixel_errors
from backend.motion.rotations import rotation_vector_to_matrix
from backend.motion.view_drift import estimate_drift, no_drift, take_off_drift

DAMPING = 1e-4


@dataclass(frozen=True)
class RigFitSettings:
    """Weights are relative to one correspondence per pixel of a 64 pixel picture; lengths in subject units."""

    bones: int = 64
    large_part: float = 0.04  # bounding box diagonal (subject units) from which a part has its own bones
    # A wheel is seen from one side only: with one weak contact it flies off along the line of sight.
    joints: Joints = field(default_factory=lambda: Joints(contacts=4, contact=2.0))
    samples: int = 40000
    code_threshold: float = 0.12  # loose: strict acceptance throws the limbs of blurred videos away
    stiffness: tuple[float, ...] = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of the links, coarse to fine
    loose: float = 0.1  # stiffness between separate parts of the mesh, at most
    robust: tuple[float, ...] = (0.4, 0.3, 0.2, 0.12, 0.08, 0.06)  # width of the robust error at each stiffness
    steps: int = 3  # Gauss-Newton steps at each stiffness
    clean: float = 0.004  # median error of a clean video's pixels; where it is larger, they count less beside the rest
    drift_from: float = 0.03  # stiffness from which on views may drift: earlier, parts that grow count as drift
    temporal: float = 0.03  # pulls each bone to the mean of its neighbours in time: against jitter
    prior: float = 1e-4  # to the rest pose; decides only what nothing else does
    max_per_frame: int = 3000  # correspondences; more add time, not accuracy


def fit_rig(
    rig: Rig, seen: Observations, start: tuple[Tensor, Tensor], settings: RigFitSettings, step_done: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Rotations [F, B, 3, 3] and translations [F, B, 3] of the bones about their centres, improved from `start`.

    Frame 0 is the rest and stays.
    """
    rotations, translations = start
    drift, noise = no_drift(seen, len(rotations) - 1), 1.0
    for stiffness, robust in zip(settings.stiffness, settings.robust, strict=True):
        for _ in range(settings.steps):
            if stiffness <= settings.drift_from:
                drift = estimate_drift(rig, seen, rotations, translations, drift, robust)
            steady = take_off_drift(seen, drift)
            if stiffness <= settings.drift_from:
                noise = noise_of(rig, steady, rotations, translations, settings.clean)
            stiff = max(stiffness, settings.stiffness[-1] * noise)
            system = NormalEquations(rig, rotations, translations)
            system.add_pixels(steady, robust)
            system.add_links(stiff, min(stiff, settings.loose))
            system.add_time(settings.temporal * noise**0.5)  # in full it would take fast motion away
            system.add_prior(settings.prior)
            rotations, translations = system.moved()
            step_done()
    return rotations, translations


def noise_of(rig: Rig, seen: Observations, rotations: Tensor, translations: Tensor, clean: float) -> float:
    """How much farther off the pixels are than those of a clean video: by so much less they tell beside the rest.

    What is affine over the pixels of a bone in a frame and view is no noise, but what the pose still misses.
    clean: their median error there, a length beside the object.
    """
    if not len(seen.frame):
        return 1.0
    error = pixel_errors(rig, seen, rotations[1:], translations[1:])[0]
    if seen.information is not None:
        error = (seen.information @ error[..., None])[..., 0]
    views, bones = int(seen.view.max()) + 1, len(rig.centres)
    group = (seen.frame * views + seen.view) * bones + seen.bones[:, 0]
    size = (len(rotations) - 1) * views * bones
    rows = torch.cat([torch.ones_like(error[:, :1]), seen.rest - rig.centres[seen.bones[:, 0]]], dim=1)
    matrix = (1e-4 * torch.eye(4)).to(rows).expand(size, 4, 4)
    matrix = matrix.index_add(0, group, rows[:, :, None] * rows[:, None])
    right = torch.zeros(size, 4, 2).to(rows).index_add_(0, group, rows[:, :, None] * error[:, None])
    error = error - (rows[:, None] @ torch.linalg.solve(matrix, right)[group])[:, 0]
    return max(float(error.norm(dim=-1).median()) / clean, 1.0)


class NormalEquations:
    """Of each moving frame (T = F - 1) in (turn, shift) [B, 6] of the bones, from their present pose."""

    def __init__(self, rig: Rig, rotations: Tensor, translations: Tensor) -> None:
        """rotations [F, B, 3, 3], translations [F, B, 3]."""
        self.rig, self.all_rotations, self.all_translations = rig, rotations, translations
        self.rotations, self.translations = rotations[1:], translations[1:]
        self.frames, self.bones = self.translations.shape[:2]
        size = 6 * self.bones
        self.matrix = torch.zeros(self.frames, size, size, dtype=torch.float64)  # lower blocks
        self.right = torch.zeros(self.frames, size, dtype=torch.float64)

    def _add(self, frame: Tensor, bones: Tensor, jacobian: Tensor, residual: Tensor, weight: Tensor) -> None:
        """frame [N], bones [N, K], jacobian [N, R, K, 6], residual [N, R], weight [N]."""
        order, first = frame_ranges(frame.cpu().numpy(), self.frames)
        terms = [x.cpu().numpy() for x in (bones, jacobian, residual, weight)]
        if order is not None:
            terms = [x[order] for x in terms]
        add_terms(first, *terms, self.matrix.numpy(), self.right.numpy())

    def add_pixels(self, seen: Observations, robust: float) -> None:
        """Reprojection error, Geman-McClure of width `robust` (a length beside the object)."""
        order, first = frame_ranges(seen.frame.cpu().numpy(), self.frames)
        information = torch.zeros(0, 2, 2) if seen.information is None else seen.information
        fields = seen.rest, seen.bones, seen.weights, seen.camera, seen.target, seen.confidence, information
        terms = [x.cpu().numpy() for x in fields]
        if order is not None:
            terms = [x[order] if len(x) else x for x in terms]
        shares = max(get_num_threads() // self.frames, 1)
        add_observations(first, *terms, *self._poses(), robust, shares, self.matrix.numpy(), self.right.numpy())

    def _poses(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres [B, 3], turns [T, B, 3, 3] and shifts [T, B, 3]."""
        poses = self.rig.centres, self.rotations, self.translations
        return tuple(x.cpu().contiguous().numpy() for x in poses)

    def add_links(
        self,
        stiffness: float,
        between_parts: float,
        since: tuple[Tensor, Tensor] | None = None,
        yields: float = math.inf,
    ) -> None:
        """Neighbouring bones agree on where their joints are: the edge term of embedded deformation.

        With `since` (rotations [T, B, 3, 3], translations [T, B, 3]) they only keep how far they agreed in that pose.
        A joint that the pictures pull apart by `yields` (subject units) in the mean of all frames holds half as much,
        and so on: what is a joint in one frame is one in all.
        """
        rig = self.rig
        gaps = torch.zeros(self.frames, len(rig.links), 3) if since is None else joint_gaps(rig, *since)
        # Links between parts stay loose from the start: they would turn a spinning wheel back.
        between = rig.part[rig.links[:, 0]] != rig.part[rig.links[:, 1]]
        strength = torch.where(between, between_parts, stiffness) * rig.strength
        if yields < math.inf:
            torn = joint_gaps(rig, self.rotations, self.translations) - gaps.to(rig.centres)
            strength = strength / (1 + torn.square().sum(dim=-1).mean(dim=0) / yields**2)
        held = [x.cpu().contiguous().numpy() for x in (rig.links, rig.joints, strength, gaps)]
        add_links(*held, *self._poses(), self.matrix.numpy(), self.right.numpy())

    def add_time(self, weight: float) -> None:
        """Each bone lies half-way between its poses of the frames before and after (those of the last step)."""
        if self.frames < 2:
            return
        rotations, translations = self.all_rotations, self.all_translations
        # A bone counts as four points: its centre and one along each axis.
        points = torch.cat([torch.zeros(1, 3), torch.eye(3)]).to(translations) * 0.5 * self.rig.spread
        arms = points @ rotations[1:-1].transpose(-1, -2)  # [T - 1, B, 4, 3]
        between = 0.5 * (rotations[:-2] + rotations[2:])
        target = points @ between.transpose(-1, -2) + 0.5 * (translations[:-2] + translations[2:])[:, :, None]
        error = (arms + translations[1:-1, :, None] - target).flatten(0, 1)  # [(T - 1) B, 4, 3]
        jacobian = _rigid_jacobian(arms).flatten(0, 1).flatten(1, 2)  # [(T - 1) B, 12, 6]
        self._add_own(jacobian, error.flatten(1), weight)

    def add_prior(self, weight: float) -> None:
        """A weak pull of each bone's shift to zero."""
        jacobian = torch.eye(6).to(self.translations)[3:].expand(self.frames * self.bones, 3, 6)
        self._add_own(jacobian, self.translations.flatten(0, 1), weight)

    def _add_own(self, jacobian: Tensor, residual: Tensor, weight: float) -> None:
        """Terms of one bone each, from the first frame on: jacobian [n B, R, 6], residual [n B, R]."""
        count = len(jacobian)
        frame = torch.arange(count, device=jacobian.device) // self.bones
        bone = torch.arange(count, device=jacobian.device) % self.bones
        self._add(frame, bone[:, None], jacobian[:, :, None], residual, torch.full_like(residual[:, 0], weight))

    def moved(self, length: float = 1.0) -> tuple[Tensor, Tensor]:
        """The poses of all frames after `length` steps: rotations [F, B, 3, 3] and translations [F, B, 3]."""
        turn, shift = (length * part for part in self.solve())
        rotations, translations = self.all_rotations.clone(), self.all_translations.clone()
        rotations[1:] = rotation_vector_to_matrix(turn) @ rotations[1:]
        translations[1:] += shift
        return rotations, translations

    def solve(self) -> tuple[Tensor, Tensor]:
        """The step: turns [T, B, 3], at most a radian long, and shifts [T, B, 3]."""
        step = np.empty_like(self.right.numpy())
        for matrix, right, out in zip(self.matrix.numpy(), self.right.numpy(), step, strict=True):
            damped = matrix + np.diag(1e-6 + DAMPING * matrix.diagonal())
            out[:] = cho_solve(cho_factor(damped, lower=True, overwrite_a=True, check_finite=False), right)
        step = torch.from_numpy(step).to(self.translations).view(self.frames, self.bones, 6)
        turn, shift = step.split(3, dim=-1)
        return turn / turn.norm(dim=-1, keepdim=True).clamp_min(1.0), shift


def joint_gaps(rig: Rig, rotations: Tensor, translations: Tensor) -> Tensor:
    """How far linked bones disagree on where their joint is, [T, E, 3]."""
    first, second = (
        (rotations[:, bone] @ (rig.joints - rig.centres[bone])[..., None])[..., 0]
        + rig.centres[bone]
        + translations[:, bone]
        for bone in rig.links.unbind(-1)
    )
    return first - second


def _rigid_jacobian(arms: Tensor) -> Tensor:
    """d(position) / d(turn, shift) [..., 3, 6] of a point at `arms` [..., 3] from its bone's centre."""
    x, y, z = arms.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = [zero, z, -y, one, zero, zero, -z, zero, x, zero, one, zero, y, -x, zero, zero, zero, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 6))
