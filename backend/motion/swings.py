"""Lids, doors, wheels, drawers: rigid parts that move farther from one frame to the next than tracking can follow.

A second, coarse tracker whose bones are the whole parts. In frames that following does not explain, each part is
turned about the axes and slid along the directions that its contact allows, all the way round; what looks most like
the frame is followed from there. With so few bones that is quick, and its poses are starts for the bones proper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from backend import protocol
from backend.motion.bones import Rig
from backend.motion.evidence import Pose, between, mismatch, rest_pose
from backend.motion.graph import SurfaceGraph
from backend.motion.observations import Observations
from backend.motion.parts import Zone, contact_zones, group_pieces
from backend.motion.rotations import rotation_vector_to_matrix
from backend.motion.stretch import Hold, stretched
from backend.motion.surface_views import FINE
from backend.motion.track_settings import Level, TrackSettings
from backend.motion.tracking import Tracker

MAX_PARTS = 16  # an object of more is no lid on a chest
MAX_ZONES = 4  # the largest parts are tried
AT_ONCE = 64  # poses drawn in one call: bounds memory


@dataclass(frozen=True)
class SwingSettings:
    """How far parts are searched for, and at how many pixels."""

    turns: tuple[float, ...] = (15, -15, 30, -30, 60, -60, 90, -90, 120, -120, 150, -150, 180)  # degrees
    slides: tuple[float, ...] = (0.05, -0.05, 0.1, -0.1, 0.2, -0.2, 0.4, -0.4)  # subject units
    size: int = 32  # pixels: a basin is as wide as 30 degrees or more
    followed: int = 3  # the best of them
    levels: tuple[Level, ...] = (
        Level(64, 5, 0.01, 0.2),
        Level(64, 5, 0.003, 0.2),
        Level(64, 4, 0.001, 0.15),
        Level(64, 3, 0.001, 0.1),
    )
    contact: float = 30.0  # strength of the contacts beside the pixels
    rest: float = 0.03  # stiffness of the contacts as at rest
    tears: float = 0.02  # subject units by which a contact may open before it holds half as much
    unstretched: float = 2e-3  # pull of each part to its size at rest, beside the pixels
    temporal: float = 0.4  # of the joint rounds: parts have more pixels than bones to hold against
    steady: float = 6e-2  # pull of its size to that of the frames before and after, in the joint rounds
    grown: float = 1.1  # times the last frame's error: where following leaves less, no swing is tried


class PartTracker(Tracker):
    """Poses of whole parts, which stand for those of all bones."""

    def __init__(
        self,
        subject: protocol.Subject,
        graph: SurfaceGraph,
        rig: Rig,
        samples: tuple[np.ndarray, np.ndarray],
        frames: np.ndarray,
        matte: np.ndarray,
        settings: TrackSettings,
        part_of_bone: Tensor,
        swing: SwingSettings = SwingSettings(),
    ) -> None:
        """As of `Tracker`, for which the poses are; part_of_bone [B] as of `parts_of_bones`."""
        self.stretching = False
        self.bones, self.swing, self.part_of_bone = rig, swing, part_of_bone
        zones = contact_zones(samples[0], part_of_bone.numpy()[_bone_of(rig, samples)])
        self.axes = torch.tensor(np.array([found[0].slides for found in zones]), dtype=rig.centres.dtype)
        self.zones = [found[0] for found in zones[:MAX_ZONES]]
        whole = _part_rig(rig, self.part_of_bone, [zone for found in zones for zone in found], swing.contact)
        tears = {"tears": swing.tears, "yields": swing.tears}
        settings = replace(settings, guessed=0.0, rest=swing.rest, temporal=swing.temporal, **tears)
        super().__init__(subject, graph, whole, samples, frames, matte, settings)

    def run(self, step_done: Callable[[], None]) -> Pose:
        """Matrices [F, B, 3, 3] and translations [F, B, 3] of the bones proper, each moving with its part.

        The matrices are rotations, unless the parts have to stretch.
        """
        poses = [rest_pose(len(self.rig.centres))]
        for frame in range(1, self.frames):
            poses.append(self._next(frame, poses))
            step_done()
        for frame in range(self.frames - 2, 0, -1):
            back = self._follow(frame, poses[frame + 1], self.swing.levels)
            poses[frame] = min(poses[frame], back, key=lambda pose: self._excess(frame, pose))
            step_done()
        turns, shifts = (torch.stack(part) for part in zip(*poses, strict=True))
        return self._of_bones(*self._jointly(turns, shifts, step_done))

    def _solve(
        self,
        seen: Observations,
        turns: Tensor,
        shifts: Tensor,
        level: Level,
        since: Pose | None = None,
    ) -> Pose:
        turns, shifts = super()._solve(seen, turns, shifts, level, since)
        if self.stretching:
            options, steady = self.settings, 0.0 if since is not None else self.swing.steady
            hold = Hold(self.swing.unstretched, steady, options.rest, options.tears)
            turns, shifts = stretched(self.rig, seen, turns, shifts, self.axes, level.robust, hold)
        return turns, shifts

    def _next(self, frame: int, poses: list[Pose]) -> Pose:
        """The pose of a frame from those before."""
        starts = [poses[-1]]
        if frame > 1:
            starts.append(between(*poses[-2:], 1.0 + self.settings.ahead))
        best = self._best_of(frame, starts)
        here, last = self._excess(frame, best), self._excess(frame - 1, poses[-1])
        if self._explained(frame, best) or here < self.swing.grown * last:
            return best
        if not self.stretching:
            best = self._clearly(frame, best, self._best_of(frame, self._swings(frame, poses[-1])))
            self._stretch(True)
            other = self._best_of(frame, starts)
            best, rigid = self._clearly(frame, best, other), best
            self._stretch(best is not rigid)
        return best

    def _stretch(self, yes: bool) -> None:
        """From now on parts may change their size, and stay where they touch; or they are rigid and may come apart."""
        self.stretching = yes
        tears = math.inf if yes else self.swing.tears
        self.settings = replace(self.settings, tears=tears, yields=tears)

    def _best_of(self, frame: int, starts: list[Pose]) -> Pose:
        """Of what a frame leads to from some starts, what explains it best."""
        found = [self._follow(frame, start, self.swing.levels) for start in starts]
        return min(found, key=lambda pose: self._excess(frame, pose))

    def _clearly(self, frame: int, pose: Pose, other: Pose) -> Pose:
        """The other pose where it explains the frame clearly better."""
        return other if self._excess(frame, other) < self.settings.clearly * self._excess(frame, pose) else pose

    def _swings(self, frame: int, pose: Pose) -> list[Pose]:
        """Of all that the parts could do from a pose, what looks most like the frame."""
        tried = [other for zone in self.zones for other in self._swings_of(zone, pose)]
        wanted = self._picture(self.swing.size)[frame]
        away: list[float] = []
        for start in range(0, len(tried), AT_ONCE):
            turns, shifts = (torch.stack(part) for part in zip(*tried[start : start + AT_ONCE], strict=True))
            drawn = self.painter.draw_frames(self._posed(turns, shifts), self.swing.size, FINE)[0]
            away += [mismatch(picture, wanted) for picture in drawn]
        return [tried[k] for k in np.argsort(away)[: self.swing.followed]]

    def _swings_of(self, zone: Zone, pose: Pose) -> list[Pose]:
        """All that one part could do from a pose; its axes have moved with the part that it touches."""
        make = {"dtype": self.rig.centres.dtype}
        turn, centre = pose[0][zone.other], self.rig.centres[zone.other]
        axes = torch.tensor(zone.axes, **make)
        points = (axes[:, 0] - centre) @ turn.T + centre + pose[1][zone.other]
        found = []
        for point, direction in zip(points, axes[:, 1] @ turn.T, strict=True):
            for angle in self.swing.turns:
                by = rotation_vector_to_matrix(np.radians(angle) * direction)
                found.append(_moved(self.rig, pose, zone.part, by, point, torch.zeros(3)))
        for direction in torch.tensor(zone.slides, **make) @ turn.T:
            for away in self.swing.slides:
                found.append(_moved(self.rig, pose, zone.part, torch.eye(3), points[0], away * direction))
        return found

    def _of_bones(self, turns: Tensor, shifts: Tensor) -> Pose:
        """Poses [F, P, ...] of the parts as those of all bones [F, B, ...]."""
        own = self.part_of_bone
        arms = self.bones.centres - self.rig.centres[own]
        turned = (turns[:, own] @ arms[..., None])[..., 0]
        return turns[:, own], turned - arms + shifts[:, own]


def parts_of_bones(rig: Rig, samples: tuple[np.ndarray, np.ndarray]) -> Tensor | None:
    """The part [B] of each bone; None where there is but one part, or too many. samples as of `Tracker`."""
    part_of_piece = group_pieces(samples[0], rig.part.numpy()[_bone_of(rig, samples)])
    return torch.from_numpy(part_of_piece)[rig.part] if 0 < part_of_piece.max() < MAX_PARTS else None


def _bone_of(rig: Rig, samples: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The bone [M] that holds most of each sample."""
    return rig.node_weights.argmax(dim=1).numpy()[samples[1]]


def _moved(rig: Rig, pose: Pose, bone: int, turn: Tensor, point: Tensor, shift: Tensor) -> Pose:
    """The pose with one bone turned by [3, 3] about a point [3] and shifted by [3]."""
    turns, shifts = pose[0].clone(), pose[1].clone()
    turns[bone] = turn @ pose[0][bone]
    shifts[bone] = turn @ (rig.centres[bone] + pose[1][bone] - point) + point + shift - rig.centres[bone]
    return turns, shifts


def _part_rig(rig: Rig, part: Tensor, zones: list[Zone], contact: float) -> Rig:
    """One bone for all bones of each part; part [B] of the bones."""
    count = int(part.max()) + 1
    weights = rig.node_weights @ torch.nn.functional.one_hot(part, count).to(rig.node_weights)
    nodes = torch.from_numpy(rig.graph.nodes).to(weights)
    pairs = [(zone.part, zone.other) for zone in zones for _ in zone.joints]
    joints = torch.tensor(np.array([zone.joints for zone in zones]).reshape(-1, 3)).to(weights)
    return replace(
        rig,
        centres=(weights / weights.sum(dim=0)).T @ nodes,
        node_weights=weights,
        links=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        joints=joints,
        strength=torch.full((len(pairs),), contact),
        part=torch.arange(count),
    )
